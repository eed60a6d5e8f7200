"""`make preview`: render both stacks through the real engine and provider, without a cluster.

Writes build/preview/<stack>/*.yaml, with the data of Secrets masked, and build/preview/summary.md: what is wrong, what changes
against the git ref BASE (default: origin/main, or main), and what it costs. Fails when an object is not valid or a rule is violated.
"""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from components.images import CONTEXTS
from infra import ROOT, WORK
from infra.analysis.manifests import report, schema
from infra.analysis.policy import rules
from infra.analysis.policy.guards import MASK
from infra.engine.binaries import own_pulumi
from infra.engine.cli import PulumiCli
from infra.engine.errors import CliError, CommandError
from infra.engine.operation import Told
from infra.program.settings import Settings, keys, model_servers, parse
from infra.program.settings.capacity import capacities
from infra.program.settings.committed import stack_config
from infra.program.settings.images import IMAGE_NAMES, PROMETHEUS_IMAGE
from modelfleet.place import stacks

STACKS = ("dev", "prod")
"""Of this repository, with a reviewed rendering each."""
OUTPUT = WORK / "build" / "preview"
_PLACEHOLDER_IMAGES = {
    "builder": "prebuilt",
    "refs": {name: f"modelfleet/{name}@sha256:{'0' * 64}" for name in (*IMAGE_NAMES, PROMETHEUS_IMAGE)},
}
"""With a digest that no image has, for the rendering of a stack whose images are named at deployment."""

_MASKS: dict[str, Any] = {
    "modelfleet:registryAuth": {"auths": {"registry.example.com": {"username": "masked", "password": "masked"}}},
    "modelfleet:sourceTokens": {"masked": "in-the-rendering"},
    "modelfleet:externalKeys": {"masked": "in-the-rendering"},
    "modelfleet:apiServerTls": {"certificate": "masked", "privateKey": "masked", "authority": "masked"},
    "modelfleet:verifierTls": {"certificate": "masked", "privateKey": "masked"},
}
"""Values in place of the secrets that a stack may have: only the stack's own key can decrypt those."""


def render(stack: str, target: Path, work: Path, policy_packs: Sequence[str] = ()) -> Told:
    """Write the stack's manifests into `target`. Returns what Pulumi told. Raises CliError.

    `work` is a directory for the throw-away backend.
    """
    config = _config(stack, target)
    config["modelfleet:apiKeys"] = keys.masked(config.get("modelfleet:apiKeys"))
    config["modelfleet:cachePassword"] = "maskedintherendering"
    for name, mask in _MASKS.items():
        if name in config:
            config[name] = json.dumps(mask)
    # With this HOME no kubeconfig of the user is found, so no cluster is looked at.
    cli = PulumiCli(stack=stack, state_dir=work / stack, env={"HOME": str(work)})
    cli.ensure_stack()
    cli.write_config(config)
    return cli.up(policy_packs=list(policy_packs))


def _config(stack: str, target: Path) -> dict[str, Any]:
    """The committed one, for a rendering into `target`."""
    config = stack_config(stack)
    config["modelfleet:cluster"] = {**config.get("modelfleet:cluster", {}), "renderTo": str(target)}
    config.setdefault("modelfleet:images", _PLACEHOLDER_IMAGES)
    return config


def manifests(directory: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Path and content of every rendered object, sorted by path."""
    return [(path, yaml.safe_load(path.read_text())) for path in sorted(directory.rglob("*.yaml"))]


def tidy(directory: Path) -> None:
    """Make a rendering fit to be kept and compared: one flat directory, no secret values, no random name suffixes."""
    documents = manifests(directory)
    random = {document["metadata"]["name"] for _, document in documents if re.search(r"-[0-9a-f]{8}$", document["metadata"]["name"])}
    for child in directory.iterdir():
        shutil.rmtree(child)
    # Two namespaces may have an object of one name: the verifier's, whose name is longer, comes second.
    for _, document in sorted(documents, key=lambda found: len(found[1]["metadata"].get("namespace", ""))):
        if document["kind"] == "Secret":
            for field in ("data", "stringData"):
                if field in document:
                    document[field] = dict.fromkeys(document[field], MASK)
        text = yaml.safe_dump(document)
        for name in random:
            text = text.replace(name, name[:-9])
        metadata = yaml.safe_load(text)["metadata"]
        path = directory / f"{document['kind'].lower()}-{metadata['name']}.yaml"
        if path.exists():
            path = path.with_stem(f"{document['kind'].lower()}-{metadata['namespace']}-{metadata['name']}")
        path.write_text(text)


def base_ref(wanted: str) -> str | None:
    """The ref to compare with: `wanted`, or else origin/main or main; None where none of these exists. Raises CliError."""
    for ref in [wanted] if wanted else ["origin/main", "main"]:
        if not _git("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}").returncode:
            return ref
    if wanted:
        raise CliError(f"BASE: got {wanted}, want a git ref of this repository; fetch it, or name another")
    return None


def reviewed(ref: str, stack: str) -> list[dict[str, Any]]:
    """The stack's objects in the commit where this branch left `ref`: its golden files, which a test compares with the rendering."""
    archive = _git("archive", _fork(ref), f"tests/golden/{stack}").stdout
    if not archive:
        return []
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        files = [tar.extractfile(member) for member in tar.getmembers() if member.name.endswith(".yaml")]
        return [yaml.safe_load(file.read()) for file in files if file is not None]


def rebuilt(ref: str) -> list[str]:
    """Images whose sources changed since this branch left `ref`. The golden files do not show such a change."""
    fork = _fork(ref)
    return [image for image, paths in CONTEXTS.items() if _git("diff", "--quiet", fork, "--", *paths).returncode]


def _fork(ref: str) -> str:
    return _git("merge-base", "HEAD", ref).stdout.decode().strip() or ref


def _git(*arguments: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True)


def normalized(text: str) -> str:
    """`text` with one constant for all content tags: they change with every edit of a service, and nobody reviews them."""
    return re.sub(r":src-[0-9a-f]{12}\b", ":src-000000000000", text)


def _preview(stack: str, target: Path, base: str | None) -> tuple[str, list[str]]:
    """Render a stack; its section of the summary, and what is wrong with it. Raises CliError."""
    target.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="modelfleet-preview-") as work:
        render(stack, target, Path(work))
    tidy(target)
    objects = [document for _, document in manifests(target)]
    # Rules rely on the form that the schemas check.
    errors = [line for item in objects for line in schema.problems(item)] or rules.violations(objects, rules.RENDERING_RULES)
    new = [yaml.safe_load(normalized(path.read_text())) for path, _ in manifests(target)]
    compared = report.Base(name=base, objects=reviewed(base, stack), images=rebuilt(base)) if base else None
    settings = _settings(stack, target)
    return report.section(stack, objects, new, compared, errors, capacities(settings), settings.gpu.enforces()), errors


def _settings(stack: str, target: Path) -> Settings:
    """Without secrets."""
    found = {name.removeprefix("modelfleet:"): value for name, value in _config(stack, target).items()}
    sections = {model_servers.OLD, *(field.alias for field in Settings.model_fields.values())}
    return parse({name: value for name, value in found.items() if name in sections})


def _shown(path: Path) -> Path:
    return path.relative_to(WORK) if path.is_relative_to(WORK) else path


def main() -> int:
    started = time.monotonic()
    shutil.rmtree(OUTPUT, ignore_errors=True)
    broken = False
    # Elsewhere are no reviewed renderings, and what Git has there is not ours.
    wanted, base = (STACKS, os.environ.get("BASE", "")) if WORK == ROOT else (stacks(WORK), None)
    try:
        base = None if base is None else base_ref(base)
        own_pulumi()
        with ThreadPoolExecutor(len(wanted)) as pool:
            found = list(pool.map(lambda stack: _preview(stack, OUTPUT / stack, base), wanted))
    except (CliError, CommandError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for stack, (_, errors) in zip(wanted, found, strict=True):
        print(f"preview: {stack}: {len(manifests(OUTPUT / stack))} objects in {_shown(OUTPUT / stack)}")
        for line in errors:
            broken = True
            print(f"error: {stack}: {line}", file=sys.stderr)
    (OUTPUT / "summary.md").write_text("# Preview\n\n" + "\n".join(section for section, _ in found))
    print(f"preview: {_shown(OUTPUT / 'summary.md')}, against {base or 'nothing'} ({time.monotonic() - started:.1f} s)")
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
