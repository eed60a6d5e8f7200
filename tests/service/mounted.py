"""Secrets with certificates, as a kubelet mounts them and changes them."""

import json
from collections.abc import Mapping
from pathlib import Path

from infra.preparation.certificates import api_server_tls

NAMES = ("models.example.com", "127.0.0.1")


class MountedSecret:
    """A directory whose files are links through `..data`, which is swapped: no reader sees a part of a change."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._number = 0
        directory.mkdir()
        self.pair = api_server_tls(NAMES)
        self.put(self.pair)
        for name in ("tls.crt", "tls.key", "ca.crt"):
            (directory / name).symlink_to(f"..data/{name}")

    def put(self, pair: Mapping[str, str]) -> None:
        """Have these in it from now on."""
        self._number += 1
        version = self.directory / f"..{self._number}"
        version.mkdir()
        for name, key in (("tls.crt", "certificate"), ("tls.key", "privateKey"), ("ca.crt", "authority")):
            (version / name).write_text(pair[key])
        (self.directory / "..new").symlink_to(version.name)
        (self.directory / "..new").replace(self.directory / "..data")

    def renewed(self) -> dict[str, str]:
        """Another certificate of the same authority, put in."""
        pair = api_server_tls([*NAMES, f"renewed-{self._number}.example.com"], self.pair)
        assert json.dumps(pair) != json.dumps(self.pair)
        self.put(pair)
        return pair
