"""docs/metrics.md, the alert rules and the dashboards name metrics that exist, with the labels that they have; and each metric is shown."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest
from prometheus_client import CollectorRegistry

from api_server.metrics import _SECONDS
from api_server.metrics import Metrics as ApiServerMetrics
from api_server.peers import Peers
from api_server.settings import Route
from components import alerts, dashboards
from components.objectives import RUNBOOK, ObjectivesArgs
from infra.program.settings.services import ObjectivesSettings
from model_server.metrics import Metrics as ModelServerMetrics
from model_server.metrics import Tier
from model_server.tier.keeper import State
from model_server.tier.keeping import Found
from tests.cluster import test_alerts, test_devices, test_served_by_tls
from tests.cluster.judge import divided

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\| `(\w+)` \| (counter|gauge|histogram) \|([\w, ]*)\|", re.MULTILINE)
DOCUMENTED = {name: (kind, {label.strip() for label in labels.split(",") if label.strip()}) for name, kind, labels in ROW.findall(
    (ROOT / "docs" / "metrics.md").read_text())}  # fmt: skip
RULES = [rule for group in alerts.rule_groups() for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDS = {rule["record"] for rule in RULES if "record" in rule}
PANELS = {
    f"{name}: {panel['title']} {target['refId']}": target["expr"]
    for name, text in dashboards.files().items()
    for panel in json.loads(text)["panels"]
    for target in panel.get("targets", [])
}
EXPRESSIONS = {rule.get("alert") or rule["record"]: rule["expr"] for rule in RULES} | PANELS
OTHERS = ("kube_", "kubelet_", "container_", "up")
"""How metrics begin that the user's cluster has."""
UNSHOWN = {
    "api_server_certificate_start_timestamp_seconds": "the alert on its end needs it",
    "api_server_certificate_reload_failures_total": "one is one too many, and the alert says so",
}
"""Metrics that no panel shows, and why."""


def registered(registry: CollectorRegistry) -> dict[str, str]:
    return {
        family.name + ("_total" if family.type == "counter" else ""): family.type for family in registry.collect()
    }  # fmt: skip


def test_the_page_has_every_metric_of_the_servers_with_its_type(tmp_path: Path) -> None:
    found = Found(removed=Counter({"limit": 1}))
    (state := State(tmp_path / "state")).note(found, 0)
    state.say(look_seconds=0.1)
    (of_model_servers := ModelServerMetrics(2048).registry).register(Tier(tmp_path / "state"))
    for prefix, registry in (
        ("api_server", ApiServerMetrics([], {"a": Route(url="http://a:1")}, lambda: 0, Peers(b"me", 1)).registry),
        ("model_server", of_model_servers),
    ):
        documented = {name: kind for name, (kind, _) in DOCUMENTED.items() if name.startswith(prefix)}
        assert documented == registered(registry)


def test_the_page_has_the_labels_of_the_api_server() -> None:
    metrics = ApiServerMetrics([], {"a": Route(url="http://a:1")}, lambda: 0, Peers(b"me", 1))
    for each in vars(metrics).values():
        if hasattr(each, "_labelnames"):
            name = each._name + ("_total" if each._type == "counter" else "")
            assert set(each._labelnames) == DOCUMENTED[name][1], name


def test_the_page_has_every_metric_of_the_exporter_and_the_agent() -> None:
    sources = [path for package in ("metrics_exporter", "ollama_agent") for path in (ROOT / package).glob("*.py")]
    written = {name for path in sources for name in re.findall(r'"((?:cache|image_scan|ollama|nvml)_[a-z_]+)"', path.read_text())} - {
        "ollama_agent"
    }
    documented = {name.removesuffix("_total") for name in DOCUMENTED if name.startswith(("cache_", "image_scan_", "ollama_", "nvml_"))}
    assert documented == written


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_what_is_asked_of_prometheus_exists(name: str) -> None:
    expression = EXPRESSIONS[name]
    ours = set(re.findall(r"\b(?:api_server|model_server|cache|image_scan|ollama|nvml)_\w+", expression))
    recorded = set(re.findall(r"modelfleet:\w+:\w+", expression))
    assert recorded <= RECORDS
    if not ours and not recorded:
        named = re.findall(r"\b(up|[a-z]+_[a-z_]+)\{", expression)
        assert named, expression
        assert all(each.startswith(OTHERS) for each in named), expression
        return
    # Every sample has the address that it was read from.
    labels: set[str] = {"le", "instance"} | ({"model"} if recorded else set())
    for metric in ours:
        base = re.sub(r"_(bucket|sum|count)$", "", metric)
        assert metric in DOCUMENTED or DOCUMENTED.get(base, ("", set()))[0] == "histogram", metric
        labels |= DOCUMENTED.get(metric, DOCUMENTED.get(base, ("", set())))[1]
    named = {label.strip() for names in re.findall(r"by \(([^)]*)\)", expression) for label in names.split(",")}
    named |= {label for matcher in re.findall(r"\{([^}]*)\}", expression) for label in re.findall(r"(\w+)(?:=~|!=|!~|=)\"", matcher)}
    assert named <= labels, expression


def test_each_metric_has_a_panel() -> None:
    """The others are named, with the reason."""
    shown = {re.sub(r"_(bucket|sum|count)$", "", each) for text in PANELS.values() for each in re.findall(r"\b[a-z]+_\w+", text)}
    assert DOCUMENTED.keys() - shown == UNSHOWN.keys()


def test_there_are_four_dashboards_and_no_panel_twice() -> None:
    boards = [json.loads(text) for text in dashboards.files().values()]
    assert [board["uid"] for board in boards] == ["modelfleet", "modelfleet-gpus", "modelfleet-storage", "modelfleet-cluster"]
    for board in boards:
        ids = [panel["id"] for panel in board["panels"]]
        assert ids == [*range(1, len(ids) + 1)]
        assert all(panel["title"] for panel in board["panels"])


def test_a_panel_that_needs_the_cluster_s_metrics_says_whose_they_are() -> None:
    for text in dashboards.files().values():
        for panel in json.loads(text)["panels"]:
            asked = " ".join(target["expr"] for target in panel.get("targets", []))
            about = panel.get("description", "")
            assert ("kube-state-metrics" in about) == bool(re.search(r"\bkube_", asked)), panel["title"]
            assert ("kubelet" in about or "cAdvisor" in about) == bool(re.search(r"\b(kubelet|container)_", asked)), panel["title"]


def test_what_is_in_time_is_a_bound_that_the_api_server_counts_by() -> None:
    bounds = get_args(ObjectivesSettings.model_fields["first_token_seconds"].annotation)
    assert bounds
    assert set(bounds) <= set(_SECONDS)
    assert ObjectivesArgs(**ObjectivesSettings().model_dump()) == ObjectivesArgs()


def test_every_alert_has_a_section_of_its_name_and_leads_there() -> None:
    sections = re.findall(r"^## (\w+)\n\n(critical|warning|info): (.+)$", (ROOT / RUNBOOK).read_text(), re.MULTILINE)
    assert {name: severity for name, severity, _ in sections} == {name: rule["labels"]["severity"] for name, rule in ALERTS.items()}
    assert len(sections) == len(ALERTS)
    for name, rule in ALERTS.items():
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]
        assert rule["annotations"]["runbook"] == f"{RUNBOOK}#{name.lower()}"


def test_every_alert_has_one_cause_on_a_cluster_and_the_page_says_which() -> None:
    causes = [
        (alert, cause.says, Path(str(module.__file__)).name)
        for module in (test_alerts, test_devices, test_served_by_tls)
        for cause in module.CAUSES
        for alert in cause.alerts
    ]
    assert sorted(alert for alert, *_ in causes) == sorted(ALERTS)
    page = (ROOT / RUNBOOK).read_text().partition("\n## By their causes, on a cluster\n")[2]
    assert re.findall(r"^\| `(\w+)` \| (.+) \| `([\w.]+)` \|$", page, re.MULTILINE) == sorted(causes)


@pytest.mark.parametrize(
    ("text", "speed", "wanted"),
    [
        ("10m", 60, "10s"),
        ("2m", 60, "5s"),
        ("rate(a_total[1h]) > 6", 60, "rate(a_total[60s]) > 6"),
        ("time() - a > 3 * 86400", 60, "time() - a > 3 * 86400"),
        ("0m", 60, "5s"),
    ],
)
def test_what_judges_fast_divides_durations_alone(text: str, speed: int, wanted: str) -> None:
    assert divided(text, speed) == wanted
