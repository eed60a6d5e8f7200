"""Builds every image with buildx, and makes a stack take them by digest: `python -m infra.preparation.images STACK`.

Registry, platform and builder are those of the stack's section `images`, which then has `builder: prebuilt` and the new `refs`. The
references are printed, one a line, for what scans and signs them before the stack is deployed.
"""

import argparse
import re
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pulumi
import yaml
from pulumi import automation

from components import RuntimeImages, RuntimeImagesArgs
from components.images import CONTEXTS
from infra import ROOT, WORK
from infra.engine.cli import PulumiCli
from infra.engine.errors import CliError, CommandError
from infra.engine.operation import Program, Workspace, operate
from infra.engine.progress import Watched
from infra.program.foundations import require_pinned_bases
from infra.program.settings.section import SettingsError

_SECTION = re.compile(r"^  modelfleet:images:.*\n(?:    .*\n|\s*\n(?=    ))*", re.MULTILINE)


class _Dumper(yaml.SafeDumper):
    """Keys in PEM stay readable."""


_Dumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)
)


def build(args: RuntimeImagesArgs, work: Path) -> dict[str, str]:
    """Build and push; image name to `repository@sha256:…`. `work` gets the state, which nobody needs afterwards. Raises CliError."""
    environment = PulumiCli(stack="images", state_dir=work, builder=args.builder).environment()
    program = Program(shutil.which("pulumi", path=environment["PATH"]) or "pulumi", environment)
    refs: dict[str, str] = {}

    def images() -> None:
        pulumi.export("refs", pulumi.Output.all(**RuntimeImages("images", args).refs).apply(refs.update))

    settings = automation.ProjectSettings(name="images", runtime="python", main=str(work))
    place = Workspace(work_dir=str(work), program=images, pulumi_command=program, project_settings=settings, secrets_provider="passphrase")
    stack = automation.Stack.create("images", place)
    told = operate("up", program, lambda on_event: stack.up(on_event=on_event, suppress_outputs=True), Watched)
    if told.failure:
        raise CliError(told.reason)
    return refs


def arguments(stack: Mapping[str, Any]) -> RuntimeImagesArgs:
    """What to build for a stack's configuration. Raises SettingsError where it does not say."""
    section = stack.get("modelfleet:images", {})
    if not section.get("registry"):
        raise SettingsError("modelfleet:images.registry: got nothing, want the prefix of the repositories to push to; set it")
    if stack.get("modelfleet:governance", {}).get("production"):
        require_pinned_bases("modelfleet:governance.production: got true, and", list(CONTEXTS))
    return RuntimeImagesArgs(
        builder="docker-build",
        registry=section["registry"],
        source=ROOT,
        platform=section.get("platform", "linux/amd64"),
        builder_name=section.get("builderName"),
    )


def with_refs(text: str, refs: Mapping[str, str]) -> str:
    """A stack file with these images. Its comments stay, but those of the section. Raises SettingsError for a form that is not Pulumi's."""
    before = yaml.safe_load(text)
    wanted = {**before["config"]["modelfleet:images"], "builder": "prebuilt", "refs": dict(refs)}
    section = textwrap.indent(yaml.dump({"modelfleet:images": wanted}, Dumper=_Dumper, sort_keys=False, width=200), "  ")
    after = _SECTION.sub(lambda _: section, text, count=1)
    if yaml.safe_load(after) != {**before, "config": {**before["config"], "modelfleet:images": wanted}}:
        raise SettingsError("modelfleet:images: got a section in another form than pulumi config writes, want that; indent it by 2 and 4")
    return after


def main(given: Sequence[str] | None = None, root: Path = WORK) -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.preparation.images", description=__doc__)
    parser.add_argument("stack", help="name of a stack; its Pulumi.STACK.yaml is rewritten")
    file = root / f"Pulumi.{parser.parse_args(given).stack}.yaml"
    try:
        text = file.read_text()
        args = arguments(yaml.safe_load(text)["config"])
        # So that a form which cannot be written back is refused before anything is built.
        with_refs(text, {})
        with tempfile.TemporaryDirectory(prefix="modelfleet-images-") as work:
            refs = build(args, Path(work))
        file.write_text(with_refs(text, refs))
    except (SettingsError, CliError, CommandError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(refs.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
