"""The alert rules under Prometheus' own test tool: each fires when it should, says what it is about, and ends when its cause has ended."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from components import alerts, dashboards
from tests.service import prometheus

UPSTREAM = {"upstream": "http://ollama:11434", "address": "10.0.0.1"}
GPU = {"node": "n", "gpu": "1"}
REQUESTS, FIRST = "api_server_requests_total", "api_server_time_to_first_token_seconds"
Series = list[dict[str, str]]


def series(name: str, values: str, **labels: str) -> dict[str, str]:
    return {"series": name + "{" + ",".join(f'{key}="{value}"' for key, value in labels.items()) + "}", "values": values}


def gauge(name: str, wrong: float, well: float, **labels: str) -> dict[str, str]:
    """An hour of one value, then hours of another."""
    return series(name, f"{wrong}x60 {well}x600", **labels)


def counter(name: str, wrong: float, well: float, **labels: str) -> dict[str, str]:
    """The same of what is added each minute."""
    return series(name, f"0+{wrong}x60 {60 * wrong}+{well}x600", **labels)


def requests(status: str, wrong: float, well: float) -> dict[str, str]:
    return counter(REQUESTS, wrong, well, model="m", status=status)


def certificate(expiry: int) -> Series:
    """Valid from two hours before the test's clock begins; after an hour there is a new one."""
    times = {"start": (-7200, 3600), "expiry": (expiry, 999_999)}
    return [gauge(f"api_server_certificate_{name}_timestamp_seconds", *both) for name, both in times.items()]


def streams(late: int, *, later: int = 0) -> Series:
    """Of 60 a minute."""
    bounds = {"30.0": (60 - late, 60 - later), "60.0": (60, 60), "+Inf": (60, 60)}
    buckets = [counter(f"{FIRST}_bucket", *both, model="m", le=bound) for bound, both in bounds.items()]
    return [*buckets, counter(f"{FIRST}_count", 60, 60, model="m")]


@dataclass(frozen=True)
class Case:
    fires: Series
    """Series of a cause that lasts for an hour, and has ended then."""
    quiet: Series
    """Series of what is like it, and no cause."""
    labels: dict[str, str] = field(default_factory=dict)
    summary: str = ""
    """Where it holds values."""
    over_s: str = "3h"
    """When it must have ended, since the beginning."""


CASES = {
    "ApiServerNotSeen": Case(
        [series("api_server_waiting_requests", "_x61 0x600", model="m")], [series("api_server_waiting_requests", "0x60", model="m")]
    ),
    "ModelServerUnreachable": Case(
        [gauge("api_server_upstream_up", 0, 1, **UPSTREAM)],
        [series("api_server_upstream_up", "1x60", **UPSTREAM)],
        UPSTREAM,
        "10.0.0.1 of http://ollama:11434 takes no connections.",
    ),
    "RequestsWaitForServers": Case(
        [gauge("api_server_waiting_requests", 2, 0, model="m"), requests("429", 20, 0), requests("200", 0, 100)],
        [
            series("api_server_waiting_requests", "2x8 0x50", model="m"),
            # A fleet that is full, and answers one after the other.
            series("api_server_waiting_requests", "2x60", model="full"),
            counter(REQUESTS, 1, 1, model="full", status="200"),
        ],
        {"model": "m"},
        "Requests for m wait, and none is answered.",
    ),
    "RequestsFail": Case(
        [requests("200", 90, 100), requests("503", 10, 0)],
        [requests("200", 99, 99), requests("503", 1, 1)],
        {"model": "m"},
        "10% of the requests for m fail.",
    ),
    "FleetIsFull": Case(
        [requests("200", 80, 100), requests("429", 20, 0)],
        [requests("200", 95, 95), requests("429", 5, 5)],
        {"model": "m"},
        "20% of the requests for m are refused, because all servers are busy.",
    ),
    "PromptsDoNotFit": Case(
        [requests("400", 100, 100), counter("api_server_context_refusals_total", 10, 0, model="m")],
        [requests("200", 100, 100), counter("api_server_context_refusals_total", 1, 1, model="m")],
        {"model": "m"},
        "10% of the requests for m are longer than its context.",
    ),
    "CertificateEndsSoon": Case(certificate(3900), certificate(5000), summary="The API server's certificate has 2.703% of its time left."),
    "CertificateIsNotTaken": Case(
        [counter("api_server_certificate_reload_failures_total", 60, 0)],
        [series("api_server_certificate_reload_failures_total", "0x45 1x15")],
    ),
    "ModelServerEngineDown": Case(
        [
            gauge("model_server_engine_up", 0, 1, instance="10.0.0.2:8080"),
            series("model_server_engine_up", "1x660", instance="other"),
        ],
        [series("model_server_engine_up", "1x60", instance="10.0.0.2:8080")],
        {"instance": "10.0.0.2:8080"},
        "The model server at 10.0.0.2:8080 is up, but its engine is not.",
    ),
    "KeeperFails": Case(
        [gauge("model_server_tier_keeper_failing", 1, 0, instance="10.0.0.2:8080")],
        [series("model_server_tier_keeper_failing", "0x660", instance="10.0.0.2:8080")],
        {"instance": "10.0.0.2:8080"},
        "The keeper of the disk for old prompts of the model server at 10.0.0.2:8080 cannot read or write it.",
    ),
    "CacheDown": Case([gauge("cache_up", 0, 1)], [series("cache_up", "1x60")]),
    "CacheDropsEntries": Case(
        [counter("cache_evicted_keys_total", 120, 0)],
        [counter("cache_evicted_keys_total", 30, 30)],
        summary="The cache drops 2 entries a second to make room.",
    ),
    "ImagesAreVulnerable": Case(
        [gauge("image_scan_vulnerabilities", 3, 0, severity="critical")],
        [series("image_scan_vulnerabilities", "40x60", severity="high"), series("image_scan_vulnerabilities", "0x60", severity="critical")],
        summary="The images that run have 3 critical vulnerabilities.",
    ),
    "ImageScanIsOld": Case(
        [gauge("image_scan_timestamp_seconds", -3 * 86400 - 3600, 3600), gauge("image_scan_unread_images", 0, 0)],
        [series("image_scan_timestamp_seconds", f"{-2 * 86400}x60"), series("image_scan_unread_images", "0x60")],
    ),
    "ApiServersDoNotAgree": Case(
        [
            each
            for instance in ("a", "b")
            for each in (gauge("api_server_agrees", 0, 1, instance=instance), gauge("api_server_gateways", 2, 2, instance=instance))
        ],
        [series("api_server_agrees", "0x60", instance="a"), series("api_server_gateways", "1x60", instance="a")],
    ),
    "ModelHasProblem": Case(
        [gauge("ollama_model_problem", 1, 0, model="m", kind="load", instance=each) for each in ("a", "b")],
        [series("ollama_model_problem", "1x60", model="m", kind="waiting"), series("ollama_model_problem", "1x5", model="m", kind="load")],
        {"model": "m", "kind": "load"},
        "m cannot answer on a replica of the fleet: load.",
    ),
    "ModelsPushEachOtherOut": Case(
        [counter("ollama_model_evictions_total", 0.2, 0, model="m")],
        [counter("ollama_model_evictions_total", 0.05, 0, model="m")],
        {"model": "m"},
        "m was unloaded 12 times in an hour before its time.",
    ),
    "StoreHasNoRoom": Case(
        [gauge("ollama_store_free_bytes", 4, 50), gauge("ollama_store_bytes", 96, 50)],
        [series("ollama_store_free_bytes", "6x60"), series("ollama_store_bytes", "94x60")],
        summary="The volume of a replica has 4% of its room left.",
    ),
    "ReplicaIsUnready": Case(
        [gauge("ollama_ready", 0, 1), gauge("ollama_draining", 0, 0)],
        [series("ollama_ready", "0x60"), series("ollama_draining", "1x60")],
    ),
    "GpuDriverDown": Case(
        [gauge("nvml_up", 0, 1, node="n")],
        [series("nvml_up", "1x60", node="n")],
        {"node": "n"},
        "The NVIDIA driver of n does not answer, so nothing is known of its GPUs.",
    ),
    "GpuIsHeldBack": Case(
        [gauge("nvml_clocks_held_back", 1, 0, **GPU, reason="heat")],
        [series("nvml_clocks_held_back", "1x60", **GPU, reason="power")],
        {**GPU, "reason": "heat"},
        "GPU 1 of n runs slower than it could: heat.",
    ),
    "GpuIsLost": Case([gauge("nvml_gpu_up", 0, 1, **GPU)], [series("nvml_gpu_up", "1x60", **GPU)], GPU, "GPU 1 of n does not answer."),
    "GpuHasErrors": Case(
        [counter("nvml_ecc_uncorrected_errors_total", 1, 0, **GPU)],
        [series("nvml_ecc_uncorrected_errors_total", "3x60", **GPU)],
        GPU,
        "GPU 1 of n had memory errors that could not be corrected.",
    ),
    # 14.4 times too fast is 14.4 % of the turns, and 72 % of the streams.
    "TurnsBudgetBurnsFast": Case(
        [requests("200", 80, 100), requests("429", 12, 0), requests("503", 8, 0), requests("400", 900, 900)],
        [requests("200", 95, 95), requests("503", 5, 5), requests("499", 900, 900)],
        {"model": "m"},
        "20% of the turns of m got no answer: the budget of a month is gone within days.",
    ),
    "TurnsBudgetBurnsSlowly": Case(
        [requests("200", 96, 100), requests("503", 4, 0)],
        [requests("200", 99.5, 99.5), requests("503", 0.5, 0.5)],
        {"model": "m"},
        "4% of the turns of m got no answer: the budget of a month does not last.",
        "10h",
    ),
    "FirstTokenBudgetBurnsFast": Case(
        streams(48),
        streams(15, later=15),
        {"model": "m"},
        "80% of the streams of m waited over 30 s for their first token: the budget of a month is gone within days.",
    ),
    "FirstTokenBudgetBurnsSlowly": Case(
        streams(12),
        streams(2, later=2),
        {"model": "m"},
        "20% of the streams of m waited over 30 s for their first token: the budget of a month does not last.",
        "10h",
    ),
}
RULES = {rule["alert"]: rule for group in alerts.rule_groups() for rule in group["rules"] if "alert" in rule}
_FEW = [counter(REQUESTS, 0.1, 0, model="m", status=status) for status in ("200", "503")]
"""Twelve requests in an hour, half of which fail."""


def judged(work: Path, *tests: dict[str, Any]) -> tuple[bool, str]:
    """Whether the tool agrees, and what it says."""
    (work / "rules.yaml").write_text(yaml.safe_dump({"groups": alerts.rule_groups()}))
    (work / "tests.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": list(tests)}))
    done = prometheus.promtool("test", "rules", work / "tests.yaml")
    return done.returncode == 0, done.stdout + done.stderr


def expectation(name: str, given: Series, firing_at: dict[str, bool]) -> dict[str, Any]:
    """Time since the beginning to whether the alert fires then."""
    rule, case = RULES[name], CASES[name]
    annotations = rule["annotations"] | ({"summary": case.summary} if case.summary else {})
    fires = [{"exp_labels": {**rule["labels"], **case.labels}, "exp_annotations": annotations}]
    looks = [{"eval_time": at, "alertname": name, "exp_alerts": fires if firing else []} for at, firing in firing_at.items()]
    return {"interval": "1m", "input_series": given, "alert_rule_test": looks}


def test_every_alert_has_a_case() -> None:
    assert CASES.keys() == RULES.keys()


@pytest.mark.parametrize("name", CASES)
def test_it_fires_when_it_should_and_only_then_and_ends(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    agrees, said = judged(
        tmp_path, expectation(name, case.fires, {"1h": True, case.over_s: False}), expectation(name, case.quiet, {"1h": False})
    )
    assert agrees, said


def test_few_requests_say_nothing_of_a_promise(tmp_path: Path) -> None:
    agrees, said = judged(tmp_path, *(expectation(f"TurnsBudgetBurns{how}", _FEW, {"1h": False}) for how in ("Fast", "Slowly")))
    assert agrees, said


@pytest.mark.parametrize("at", ["1h", "3h"])
def test_the_tool_notices_an_alert_that_should_be_otherwise(tmp_path: Path, at: str) -> None:
    agrees, _ = judged(tmp_path, expectation("CacheDown", CASES["CacheDown"].fires, {at: at == "3h"}))
    assert not agrees


def test_prometheus_takes_the_expression_of_every_panel(tmp_path: Path) -> None:
    """By its own parser, with what Grafana writes in place of its variables."""
    expressions = [
        target["expr"].replace("$__rate_interval", "1m").replace("$namespace", ".*")
        for text in dashboards.files().values()
        for panel in json.loads(text)["panels"]
        for target in panel.get("targets", [])
    ]
    assert len(expressions) > 80

    def taken(*wanted: str) -> bool:
        rules = [{"record": f"panel:{index}", "expr": expression} for index, expression in enumerate(wanted)]
        (tmp_path / "panels.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
        return prometheus.promtool("check", "rules", tmp_path / "panels.yaml").returncode == 0

    assert taken(*expressions), [each for each in expressions if not taken(each)]
    assert not taken(*expressions[:-1], expressions[-1] + ")")
