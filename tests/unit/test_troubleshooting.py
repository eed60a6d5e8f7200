"""What docs/troubleshooting.md quotes is what the programs say: sentences, codes, metrics, settings; docs/best-practices.md's settings, too."""

import json
import re
from pathlib import Path

import pytest

from api_server import errors
from infra.analysis.explain.causes import explain
from infra.analysis.explain.snapshot import Snapshot
from infra.engine.progress import QUIET_S

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGE = (DOCS / "troubleshooting.md").read_text()
PAGES = {name: (DOCS / f"{name}.md").read_text() for name in ("troubleshooting", "best-practices")}
BIG, SMALL = "qwen3-coder:30b", "smollm2:135m"
REFUSALS = [
    errors.unauthorized(),
    errors.unauthorized("a key that has expired"),
    errors.too_many_of_a_key(60, "requests a minute", 12),
    errors.too_many_of_a_key(8, "requests at once", 2),
    errors.too_busy(BIG, 10),
    errors.no_memory(2),
    errors.unavailable(BIG, 2),
    errors.held_too_long(BIG, 600, 10),
    errors.no_connection(2),
    errors.upstream_failed(BIG, "a broken answer"),
    errors.unknown_model("coder:30", [BIG, "qwen3-coder-30b-cpu"]),
    errors.context_exceeded(BIG, 70123, 65536),
    errors.no_tools(SMALL),
    errors.no_media(SMALL, "messages"),
]
"""As the API server makes them."""


def findings() -> list[str]:
    """What `make explain` says of the faults that were recorded on a cluster."""
    recorded = (json.loads(path.read_text()) for path in sorted((Path(__file__).parent / "snapshots").glob("*.json")))
    return [str(finding) for document in recorded for finding in explain(Snapshot(**document["snapshot"]))]


def said() -> list[str]:
    gpu = json.loads((ROOT / "bench" / "results" / "gpu.json").read_text())["fleet"]["no_gpu"]["said"]
    return [*map(str, REFUSALS), *findings(), gpu]


def quoted() -> list[str]:
    return [line for block in re.findall(r"^```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) for line in block.splitlines()]


def is_said(line: str, known: list[str]) -> bool:
    begun = line.removesuffix("…").rstrip()
    return line in known if begun == line else any(each.startswith(begun) for each in known)


def test_every_quoted_sentence_is_one_that_a_program_says() -> None:
    known = said()
    assert len(quoted()) >= 25
    assert [line for line in quoted() if not is_said(line, known)] == []
    assert not is_said("Authorization: got no good key, want Bearer <key>; ask somebody", known)
    assert not is_said("Pod/p: got no GPU …", known)


def test_every_refusal_of_the_table_stands_on_the_page() -> None:
    lines = quoted()
    assert [str(each) for each in REFUSALS if not any(is_said(line, [str(each)]) for line in lines)] == []


def section(title: str) -> str:
    return PAGE.partition(f"\n### {title}\n")[2].partition("\n### ")[0].partition("\n## ")[0]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda each: f"{each.status} {str(each)[:40]}")
def test_a_refusal_stands_below_its_status_and_code(refusal: errors.ApiError) -> None:
    (there,) = (title for title in re.findall(r"^### (.+)$", PAGE, re.MULTILINE) if str(refusal)[:60] in section(title))
    code = refusal.body["error"]["code"] or ""
    assert str(refusal.status) in (there + section(there)), there
    assert there == str(refusal.status) or code in there or code in section(there) or refusal.status == 400, there


@pytest.mark.parametrize("name", PAGES)
def test_metrics_of_the_page_exist(name: str) -> None:
    found = set(re.findall(r"`((?:api_server|model_server|ollama|cache|nvml)_[a-z_]+)`", PAGES[name]))
    assert len(found) >= 3
    assert [each for each in sorted(found) if f"| `{each}` |" not in (DOCS / "metrics.md").read_text()] == []


def settings() -> set[str]:
    """`section.key` of docs/configuration.md, which is made from the settings; a setting with parts counts by its beginnings, too."""
    found = set[str]()
    for title, table in re.findall(r"^## `modelfleet:(\w+)`\n(.*?)(?=^## |\Z)", (DOCS / "configuration.md").read_text(), re.M | re.S):
        for key in re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE):
            parts = key.removeprefix("[].").split(".")
            found |= {".".join([title, *parts[: count + 1]]) for count in range(len(parts))}
    return found


@pytest.mark.parametrize("name", PAGES)
def test_settings_of_the_page_exist(name: str) -> None:
    known = settings()
    sections = "|".join(sorted({each.partition(".")[0] for each in known}))
    found = set(re.findall(rf"`((?:{sections})\.[A-Za-z.]+)`", PAGES[name]))
    assert len(found) >= 8
    assert sorted(found - known) == []
    assert {"fleet.replicas", "storage.hot.size", "fleet.scale.idleMinutes", "modelServers.parallel"} <= known
    assert "fleet.repliccas" not in known


def test_the_page_knows_when_up_says_what_it_waits_for() -> None:
    assert f"After {QUIET_S:.0f} s without news `make up` prints what it waits for" in PAGE


def test_the_table_at_the_top_leads_to_every_symptom() -> None:
    titles = re.findall(r"^### (.+)$", PAGE, re.MULTILINE)
    linked = re.findall(r"\]\(#([\w-]+)\)", PAGE.partition("\n## ")[0])
    assert sorted(linked) == sorted(re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles)
