"""Debian's docker-registry, as every test starts it that needs one."""

import json
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from devcluster import packages
from tests.service.processes import free_port


@contextmanager
def serving(
    work: Path,
    address: str = "",
    *,
    directory: Path | None = None,
    auth: dict[str, Any] | None = None,
    tls: tuple[Path, Path] | None = None,
    authority: Path | None = None,
) -> Iterator[str]:
    """Host and port, on a free port of loopback unless `address` names one. It keeps what it has in `directory`, by default `work`/registry.

    Open without `auth`, plain HTTP without `tls` (certificate and key), which `authority` has signed.
    """
    work.mkdir(parents=True, exist_ok=True)
    address = address or f"127.0.0.1:{free_port()}"
    name = f"registry-{address.rpartition(':')[2]}"
    config, log = work / f"{name}.json", work / f"{name}.log"
    http: dict[str, Any] = {"addr": address} | ({"tls": {"certificate": str(tls[0]), "key": str(tls[1])}} if tls else {})
    storage = {"filesystem": {"rootdirectory": str(directory or work / "registry")}}
    document = {"version": "0.1", "log": {"level": "error"}, "storage": storage, "http": http} | ({"auth": auth} if auth else {})
    config.write_text(json.dumps(document))
    verify = ssl.create_default_context(cafile=authority) if authority else True
    argv = [str(packages.registry_binary()), "serve", str(config)]
    # Nothing of ours: REGISTRY_* would override its configuration.
    environment = {"OTEL_TRACES_EXPORTER": "none"}
    with log.open("wb") as output, subprocess.Popen(argv, env=environment, stdout=output, stderr=output) as process:
        try:
            deadline = time.monotonic() + 30
            while True:
                try:
                    answer = httpx.get(f"http{'s' if tls else ''}://{address}/v2/", verify=verify, timeout=2, trust_env=False)
                    break
                except httpx.HTTPError:
                    assert process.poll() is None, log.read_text()
                    assert time.monotonic() < deadline, log.read_text()
                    time.sleep(0.05)
            assert answer.status_code == (401 if auth else 200), log.read_text()
            yield address
        finally:
            process.terminate()
