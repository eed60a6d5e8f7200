"""The summary of a preview, as Markdown for a pull request."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infra.analysis.manifests.changes import ACTIONS, Change, Difference, compare
from infra.analysis.manifests.cost import Cost, total
from infra.program.settings.capacity import Capacity

Object = Mapping[str, Any]
_LONGEST_VALUE = 120
_MOST_FIELDS = 20
_MEANING = {
    "deleted": "deleted",
    "replaced": "REPLACED",
    "refused": "REFUSED by the cluster: no claim gets smaller",
    "changed": "changed",
    "created": "created",
}


@dataclass(frozen=True, kw_only=True)
class Base:
    """What a rendering is compared with."""

    name: str
    objects: Sequence[Object]
    images: Sequence[str]
    """Images whose sources differ from those of the base."""


def _value(value: Any) -> str:
    if value is None:
        return "nothing"
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    text = " ".join(text.split()).replace("`", "'").replace("|", "\\|")
    return f"`{text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + '…'}`"


def _difference(difference: Difference) -> str:
    return f"`{difference.path}` {_value(difference.old)} → {_value(difference.new)}"


def _row(change: Change) -> str:
    title, action = change.title, _MEANING[change.action]
    if change.loses_data:
        title, action = f"**{title}**", f"**{action}: data may be lost, {change.loses_data}**"
    shown = [_difference(each) for each in change.differences[:_MOST_FIELDS]]
    hidden = len(change.differences) - len(shown)
    return f"| {title} | {action} | {'<br>'.join([*shown, *([f'… and {hidden} more'] if hidden else [])])} |"


def changes(found: Sequence[Change], base: str) -> str:
    """The table of changes against `base`, in the order that `compare` gave."""
    if not found:
        return f"No object changes against {base}.\n"
    counts = Counter(change.action for change in found)
    head = ", ".join(f"{counts[action]} {action}" for action in ACTIONS if counts[action])
    return "\n".join([f"Against {base}: {head}.", "", "| object | what happens | fields |", "| --- | --- | --- |", *map(_row, found), ""])


def images(names: Sequence[str]) -> str:
    """The images that are built anew. The comparison leaves out their tags, so this line alone shows it."""
    return f"Images with other sources, whose pods are replaced one after the other: {', '.join(f'`{name}`' for name in names)}.\n"


def _number(value: float, unit: float = 1, suffix: str = "", *, signed: bool = False) -> str:
    text = f"{value / unit:{'+' if signed else ''}.2f}".rstrip("0").rstrip(".")
    return f"{'0' if text in ('+0', '-0') else text}{suffix}"


def _cost_row(name: str, cost: Cost, *, signed: bool = False) -> str:
    cells = [
        _number(cost.gpus, signed=signed),
        _number(cost.cpu, signed=signed),
        _number(cost.memory, 2**30, " GiB", signed=signed),
        _number(cost.storage, 2**30, " GiB", signed=signed),
    ]
    return f"| {name} | {' | '.join(cells)} |"


def cost(new: Sequence[Object], old: Sequence[Object] | None) -> str:
    """What the environment asks for, and the difference to `old`."""
    now = total(new)
    lines = ["| requests | GPUs | CPU cores | memory | storage |", "| --- | --- | --- | --- | --- |", _cost_row("now", now)]
    if old is not None:
        before = total(old)
        lines += [_cost_row("base", before), _cost_row("difference", now + before.times(-1), signed=True)]
    return "\n".join([*lines, ""])


def carries(found: Mapping[str, Capacity]) -> str:
    """How many conversations each model's servers keep warm, and how many of their turns they answer, of all that there may be."""
    head = ["model", "servers", "answers at once", "warm conversations of full context", "warm tokens", "turns a minute"]
    lines = [f"| {' | '.join(head)} |", "| --- | --- | --- | --- | --- | --- |"]
    for name, each in found.items():
        turns = "not measured" if each.turns_per_minute is None else f"{each.turns_per_minute:g}"
        servers = each.servers if each.fewest is None else f"{each.fewest} to {each.servers}"
        lines.append(f"| {name} | {servers} | {each.servers * each.slots} | {each.conversations} | {each.tokens} | {turns} |")
    return "\n".join([*lines, ""])


def workloads(objects: Sequence[Object]) -> str:
    """Every container that runs: image and requests."""
    lines = ["| workload | pods | image | cpu | memory | gpus |", "| --- | --- | --- | --- | --- | --- |"]
    for item in objects:
        if item["kind"] not in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
            continue
        pods = "one a node" if item["kind"] == "DaemonSet" else item["spec"].get("replicas", 1)
        for container in item["spec"]["template"]["spec"]["containers"]:
            requests = container["resources"]["requests"]
            claimed = "claimed" if container["resources"].get("claims") else "0"
            gpus = next((value for key, value in requests.items() if key.startswith("nvidia.com/")), claimed)
            title = f"{item['kind']}/{item['metadata']['name']}"
            lines.append(f"| {title} | {pods} | {container['image']} | {requests['cpu']} | {requests['memory']} | {gpus} |")
    return "\n".join([*lines, ""])


def section(
    stack: str,
    objects: Sequence[Object],
    comparable: Sequence[Object],
    base: Base | None,
    errors: Sequence[str],
    capacities: Mapping[str, Capacity],
    gpus: str = "",
) -> str:
    """Everything about one stack: what is wrong, what changes, what it costs, what it carries, what runs.

    `comparable` are the objects in the form of the base's. `gpus`: what one GPU of a pod is, and what bounds it.
    """
    verdict = "\n".join(f"- {line}" for line in errors) if errors else f"{len(objects)} objects, valid, and no rule is violated."
    parts = [f"## {stack}", "", verdict, ""]
    parts += [changes(compare(base.objects, comparable), f"`{base.name}`")] if base else []
    parts += [images(base.images)] if base and base.images else []
    parts += [cost(objects, base.objects if base else None), carries(capacities)]
    parts += [f"{gpus}\n"] if gpus else []
    parts += ["<details><summary>what runs</summary>\n", workloads(objects), "</details>\n"]
    return "\n".join(parts)
