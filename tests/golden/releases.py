"""What is kept of every release: its committed configuration, its state and its objects, one directory a stack below `releases`.

After a release, from its commit: `python -m tests.golden.releases NUMBER`. The state is that of a rendering with the committed
configuration. Its secrets have the values of the tests, and are plain.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from infra import ROOT
from infra.analysis import preview
from tests.golden.engine import PREBUILT, Engine

RELEASES = Path(__file__).parent / "releases"
DIRECTORY = "/rendered"
"""Stands for the rendering's directory in a state."""


@dataclass(frozen=True)
class Release:
    """One stack of one release."""

    number: int
    stack: str

    @property
    def directory(self) -> Path:
        return RELEASES / str(self.number) / self.stack

    @property
    def config(self) -> dict[str, Any]:
        """The committed configuration, as a user has it who upgrades the program alone."""
        return prebuilt(yaml.safe_load((self.directory / f"Pulumi.{self.stack}.yaml").read_text())["config"])

    @property
    def changes(self) -> Path:
        """What today's program would change, as it was reviewed."""
        return self.directory / "changes.txt"

    def state(self, directory: str) -> dict[str, Any]:
        """The export, as if its objects had been rendered into `directory`."""
        return json.loads((self.directory / "state.json").read_text().replace(DIRECTORY, directory))

    def objects(self) -> list[dict[str, Any]]:
        """Every object, without the random part of names and with masked Secrets."""
        return [document for _, document in preview.manifests(self.directory / "objects")]

    def keep(self, work: Path) -> None:
        """Write all of it from the tree as it is. Raises CliError."""
        engine = Engine(self.stack, work)
        engine.deploy(prebuilt(preview.stack_config(self.stack)))
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)
        shutil.copyfile(ROOT / f"Pulumi.{self.stack}.yaml", self.directory / f"Pulumi.{self.stack}.yaml")
        (self.directory / "state.json").write_text(exported(engine))
        preview.tidy(engine.target)
        (self.directory / "objects").mkdir()
        for path, _ in preview.manifests(engine.target):
            (self.directory / "objects" / path.name).write_text(preview.normalized(path.read_text()))


def prebuilt(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without images of the sources: their tags change with every edit of a service, and are not what is compared."""
    return {**config, "modelfleet:images": PREBUILT}


def kept() -> list[Release]:
    return [Release(int(path.parent.name), path.name) for path in sorted(RELEASES.glob("*/*/"))]


def exported(engine: Engine) -> str:
    """The stack's state in a form to keep: values of secrets are those of the test, the directory is a placeholder."""
    document = json.loads(engine.cli.run("stack", "export", "--show-secrets").replace(str(engine.target), DIRECTORY))
    document["deployment"].pop("secrets_providers", None)
    for resource in document["deployment"]["resources"]:
        for field in ("created", "modified", "sourcePosition", "stackTrace"):
            resource.pop(field, None)
    return json.dumps(document, separators=(",", ":"), sort_keys=True) + "\n"


if __name__ == "__main__":
    for name in preview.STACKS:
        with tempfile.TemporaryDirectory() as scratch:
            Release(int(sys.argv[1]), name).keep(Path(scratch))
