"""The real engine and provider on a rendered stack: what an update would do, without a cluster."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.analysis import preview
from infra.engine.changes import Plan
from infra.engine.cli import PulumiCli
from infra.program.settings.images import IMAGE_NAMES, PROMETHEUS_IMAGE, VLLM_IMAGE

PREBUILT = {
    "builder": "prebuilt",
    "refs": {name: f"modelfleet/{name}@sha256:{'0' * 64}" for name in (*IMAGE_NAMES, PROMETHEUS_IMAGE, VLLM_IMAGE)},
}
"""Images that do not change with the sources."""
Overrides = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Engine:
    """One stack with the committed configuration, rendered into `target`."""

    stack: str
    work: Path

    @property
    def target(self) -> Path:
        return self.work / "out"

    @property
    def cli(self) -> PulumiCli:
        return PulumiCli(stack=self.stack, state_dir=self.work / "state", env={"HOME": str(self.work)})

    def configure(self, overrides: Overrides | None = None, config: Mapping[str, Any] | None = None) -> None:
        """Configure the stack with the committed configuration, or another one, and with `overrides` of its sections."""
        self.target.mkdir(parents=True, exist_ok=True)
        config = dict(config or preview.stack_config(self.stack))
        config.setdefault("modelfleet:images", PREBUILT)
        changed: dict[str, Mapping[str, Any]] = {**(overrides or {})}
        changed["cluster"] = {**changed.get("cluster", {}), "renderTo": str(self.target)}
        for section, values in changed.items():
            config[f"modelfleet:{section}"] = {**config.get(f"modelfleet:{section}", {}), **values}
        config["modelfleet:apiKeys"] = json.dumps({"masked": {"key": "masked-in-the-rendering"}})
        config["modelfleet:cachePassword"] = "maskedintherendering"
        self.cli.ensure_stack()
        self.cli.write_config(config)

    def deploy(self, config: Mapping[str, Any] | None = None) -> None:
        self.configure(config=config)
        self.cli.up()

    def planned(self, overrides: Overrides | None = None, config: Mapping[str, Any] | None = None) -> Plan:
        """What an update with these overrides would do. Raises CliError."""
        self.configure(overrides, config)
        return self.cli.preview()
