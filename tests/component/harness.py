"""Components under Pulumi's mocks: every resource that a construction registers, in wire form."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pulumi.runtime import MockCallArgs, MockResourceArgs, Mocks, set_mocks, test


@dataclass
class Recorder(Mocks):
    resources: list[MockResourceArgs] = field(default_factory=list)
    outputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Resource type to what a cluster adds to its inputs."""

    def new_resource(self, args: MockResourceArgs) -> tuple[str, dict[str, Any]]:
        self.resources.append(args)
        inputs = dict(args.inputs)
        metadata = inputs.get("metadata")
        if isinstance(metadata, dict):
            # The provider names what the program does not.
            inputs["metadata"] = {"name": f"{args.name}-auto", **metadata}
        return f"{args.name}-id", {**inputs, **self.outputs.get(args.typ, {})}

    def call(self, args: MockCallArgs) -> tuple[dict[str, Any], list[tuple[str, str]] | None]:
        return {}, None

    def kind(self, kind: str) -> list[dict[str, Any]]:
        """Inputs of every resource whose type ends so, e.g. `:Deployment`."""
        return [resource.inputs for resource in self.resources if resource.typ.endswith(f":{kind}")]

    def named(self, kind: str, name: str) -> dict[str, Any]:
        """The one of this kind with that name."""
        (found,) = (each for each in self.kind(kind) if each["metadata"].get("name") == name)
        return found

    def one(self, kind: str) -> dict[str, Any]:
        found = self.kind(kind)
        assert len(found) == 1, f"{kind}: {len(found)}"
        return found[0]


def render(construct: Callable[[], Any], *, preview: bool = False, outputs: Mapping[str, Mapping[str, Any]] | None = None) -> Recorder:
    """Run `construct` and wait for everything that it registers."""
    recorder = Recorder(outputs=outputs or {})
    try:
        asyncio.get_event_loop()
    except RuntimeError:
        # A test before this one has closed the loop that Pulumi's mocks take.
        asyncio.set_event_loop(asyncio.new_event_loop())
    set_mocks(recorder, project="modelfleet", stack="test", preview=preview)

    @test
    def run() -> None:
        construct()

    run()
    return recorder


def rendered(config: Mapping[str, Any], **cluster: Any) -> dict[str, Any]:
    """The configuration of a stack that looks at no cluster."""
    return {**config, "cluster": {"renderTo": "/rendered", **cluster}}
