"""docs/metrics.md, the alert rules and the dashboard name metrics that exist, with the labels that they have."""

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from api_server.metrics import Metrics as ApiServerMetrics
from api_server.peers import Peers
from api_server.settings import Route
from components import alerts, dashboard
from model_server.metrics import Metrics as ModelServerMetrics

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\| `(\w+)` \| (counter|gauge|histogram) \|([\w, ]*)\|", re.MULTILINE)
DOCUMENTED = {name: (kind, {label.strip() for label in labels.split(",") if label.strip()}) for name, kind, labels in ROW.findall(
    (ROOT / "docs" / "metrics.md").read_text())}  # fmt: skip
RULES = [rule for group in alerts.rule_groups() for rule in group["rules"]]
EXPRESSIONS = {rule["alert"]: rule["expr"] for rule in RULES} | {
    panel["title"]: panel["targets"][0]["expr"] for panel in dashboard.document()["panels"]
}


def registered(registry: CollectorRegistry) -> dict[str, str]:
    return {
        family.name + ("_total" if family.type == "counter" else ""): family.type for family in registry.collect()
    }  # fmt: skip


def test_the_page_has_every_metric_of_the_servers_with_its_type() -> None:
    for prefix, registry in (
        ("api_server", ApiServerMetrics([], {"a": Route(url="http://a:1")}, lambda: 0, Peers(b"me", 1)).registry),
        ("model_server", ModelServerMetrics().registry),
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
    written = {name for path in sources for name in re.findall(r'"((?:cache|ollama|nvml)_[a-z_]+)"', path.read_text())} - {"ollama_agent"}
    documented = {name.removesuffix("_total") for name in DOCUMENTED if name.startswith(("cache_", "ollama_", "nvml_"))}
    assert documented == written


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_what_is_asked_of_prometheus_exists(name: str) -> None:
    expression = EXPRESSIONS[name]
    metrics = set(re.findall(r"\b(?:api_server|model_server|cache|ollama|nvml)_\w+", expression))
    assert metrics
    labels: set[str] = {"le"}
    for metric in metrics:
        base = re.sub(r"_(bucket|sum|count)$", "", metric)
        assert metric in DOCUMENTED or DOCUMENTED.get(base, ("", set()))[0] == "histogram", metric
        labels |= DOCUMENTED.get(metric, DOCUMENTED.get(base, ("", set())))[1]
    for names in re.findall(r"by \(([^)]*)\)", expression):
        assert {label.strip() for label in names.split(",")} <= labels, expression


def test_every_alert_says_what_to_do_and_is_on_the_page() -> None:
    rows = dict(re.findall(r"^\| `([A-Z]\w+)` \| (\w+) \|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE))
    assert rows == {rule["alert"]: rule["labels"]["severity"] for rule in RULES}
    for rule in RULES:
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]
