"""`make preview`: render both stacks through the real engine and provider, without a cluster.

Writes build/preview/<stack>/*.yaml, with the data of Secrets masked, and build/preview/summary.md.
"""

import json
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from infra.cli import ROOT, CliError, PulumiCli
from infra.policy import rules
from infra.settings import IMAGE_NAMES

STACKS = ("dev", "prod")
_PLACEHOLDER_DIGEST = "0" * 64
"""Stands in the rendering of a stack whose images are named at deployment; no image has it."""


def stack_config(stack: str) -> dict[str, Any]:
    """The committed configuration of a stack, section by section."""
    document = yaml.safe_load((ROOT / f"Pulumi.{stack}.yaml").read_text())
    return dict(document["config"])


def render(stack: str, target: Path, work: Path) -> None:
    """Write the stack's manifests into `target`; `work` holds the throw-away backend. Raises CliError."""
    config = stack_config(stack)
    config["modelfleet:cluster"] = {**config.get("modelfleet:cluster", {}), "renderTo": str(target)}
    refs = {name: f"modelfleet/{name}@sha256:{_PLACEHOLDER_DIGEST}" for name in IMAGE_NAMES}
    config.setdefault("modelfleet:images", {"builder": "prebuilt", "refs": refs})
    config["modelfleet:apiKeys"] = json.dumps(["masked-in-the-rendering"])
    config["modelfleet:cachePassword"] = "maskedintherendering"
    # No cluster of the user may be looked at, even if there is one.
    cli = PulumiCli(stack=stack, state_dir=work / stack, env={"HOME": str(work)})
    cli.ensure_stack()
    cli.write_config(config)
    cli.run("up", "--yes", "--skip-preview", "--suppress-outputs")


def manifests(directory: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Path and content of every rendered object, sorted by path."""
    return [(path, yaml.safe_load(path.read_text())) for path in sorted(directory.rglob("*.yaml"))]


def tidy(directory: Path) -> None:
    """Make a rendering fit to be kept and compared: one flat directory, no secret values, no random name suffixes."""
    documents = manifests(directory)
    random = {document["metadata"]["name"] for _, document in documents if re.search(r"-[0-9a-f]{8}$", document["metadata"]["name"])}
    for child in directory.iterdir():
        shutil.rmtree(child)
    for _, document in documents:
        if document["kind"] == "Secret":
            for field in ("data", "stringData"):
                if field in document:
                    document[field] = dict.fromkeys(document[field], "MASKED")
        text = yaml.safe_dump(document)
        for name in random:
            text = text.replace(name, name[:-9])
        name = yaml.safe_load(text)["metadata"]["name"]
        (directory / f"{document['kind'].lower()}-{name}.yaml").write_text(text)


def _pod_specs(documents: list[dict[str, Any]]) -> list[tuple[str, int, Mapping[str, Any]]]:
    """(kind/name, replicas, pod spec) of every workload."""
    found: list[tuple[str, int, Mapping[str, Any]]] = []
    for document in documents:
        template = (
            document.get("spec", {}).get("template") if document["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job") else None
        )
        if template:
            name = f"{document['kind']}/{document['metadata']['name']}"
            found.append((name, document["spec"].get("replicas", 1), template["spec"]))
    return found


def summary(stack: str, documents: list[dict[str, Any]]) -> str:
    kinds = Counter(document["kind"] for document in documents)
    lines = [
        f"## {stack}",
        "",
        "| kind | objects |",
        "| --- | --- |",
        *(f"| {kind} | {count} |" for kind, count in sorted(kinds.items())),
        "",
    ]
    lines += ["| workload | pods | image | cpu | memory | gpus |", "| --- | --- | --- | --- | --- | --- |"]
    for name, replicas, spec in _pod_specs(documents):
        for container in spec["containers"]:
            requests = container["resources"]["requests"]
            gpus = next((value for key, value in requests.items() if key.startswith("nvidia.com/")), "0")
            lines.append(f"| {name} | {replicas} | {container['image']} | {requests['cpu']} | {requests['memory']} | {gpus} |")
    return "\n".join([*lines, ""])


def main() -> int:
    output = ROOT / "build" / "preview"
    shutil.rmtree(output, ignore_errors=True)
    sections: list[str] = []
    broken = False
    for stack in STACKS:
        started = time.monotonic()
        target = output / stack
        target.mkdir(parents=True)
        try:
            with tempfile.TemporaryDirectory(prefix="modelfleet-preview-") as work:
                render(stack, target, Path(work))
        except CliError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        tidy(target)
        objects = [document for _, document in manifests(target)]
        sections.append(summary(stack, objects))
        for line in rules.violations(objects, rules.RENDERING_RULES):
            broken = True
            print(f"error: {stack}: {line}", file=sys.stderr)
        print(f"preview: {stack}: {len(manifests(target))} objects in {target.relative_to(ROOT)} ({time.monotonic() - started:.1f} s)")
    (output / "summary.md").write_text("# Preview\n\n" + "\n".join(sections))
    print(f"preview: {(output / 'summary.md').relative_to(ROOT)}")
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
