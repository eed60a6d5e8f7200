"""The alert rules under Prometheus' own test tool: each fires when it should, names what it is about, and is quiet otherwise."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from components import alerts
from devcluster import packages

UPSTREAM = {"upstream": "http://ollama:11434", "address": "10.0.0.1"}


def series(name: str, values: str, **labels: str) -> dict[str, str]:
    return {"series": name + "{" + ",".join(f'{key}="{value}"' for key, value in labels.items()) + "}", "values": values}


def certificate(start: int, expiry: int) -> list[dict[str, str]]:
    """Valid from one time to another, in seconds of the test's clock, which begins at 0."""
    times = {"start": start, "expiry": expiry}
    return [series(f"api_server_certificate_{name}_timestamp_seconds", f"{at}x60") for name, at in times.items()]


REQUESTS = "api_server_requests_total"
SLOW = [
    series("api_server_time_to_first_token_seconds_bucket", f"0+{step}x60", model="m", le=bound)
    for bound, step in (("30", 6), ("60", 60), ("+Inf", 60))
]
FAST = [series("api_server_time_to_first_token_seconds_bucket", "0+60x60", model="m", le=bound) for bound in ("30", "60", "+Inf")]
CASES: dict[str, tuple[list[dict[str, str]], list[dict[str, str]], dict[str, str]]] = {
    # alert: (series that fire it, series that do not, labels of what fires)
    "ApiServerNotSeen": ([], [series("api_server_waiting_requests", "0x60", model="m")], {}),
    "ModelServerUnreachable": (
        [series("api_server_upstream_up", "0x60", **UPSTREAM)],
        [series("api_server_upstream_up", "1x60", **UPSTREAM)],
        UPSTREAM,
    ),
    "RequestsWaitForServers": (
        [series("api_server_waiting_requests", "2x60", model="m")],
        [series("api_server_waiting_requests", "2x8 0x50", model="m")],
        {"model": "m"},
    ),
    "RequestsFail": (
        [series(REQUESTS, "0+90x60", model="m", status="200"), series(REQUESTS, "0+10x60", model="m", status="503")],
        [series(REQUESTS, "0+99x60", model="m", status="200"), series(REQUESTS, "0+1x60", model="m", status="503")],
        {"model": "m"},
    ),
    "FleetIsFull": (
        [series(REQUESTS, "0+80x60", model="m", status="200"), series(REQUESTS, "0+20x60", model="m", status="429")],
        [series(REQUESTS, "0+95x60", model="m", status="200"), series(REQUESTS, "0+5x60", model="m", status="429")],
        {"model": "m"},
    ),
    "FirstTokenIsSlow": (SLOW, FAST, {"model": "m"}),
    "PromptsDoNotFit": (
        [series(REQUESTS, "0+100x60", model="m", status="400"), series("api_server_context_refusals_total", "0+10x60", model="m")],
        [series(REQUESTS, "0+100x60", model="m", status="200"), series("api_server_context_refusals_total", "0+1x60", model="m")],
        {"model": "m"},
    ),
    "CertificateEndsSoon": (certificate(-7200, 3900), certificate(-7200, 5000), {}),
    "CertificateIsNotTaken": (
        [series("api_server_certificate_reload_failures_total", "0x30 0+60x30")],
        [series("api_server_certificate_reload_failures_total", "0x45 1x15")],
        {},
    ),
    "ModelServerEngineDown": (
        [series("model_server_engine_up", "0x60", instance="10.0.0.2:8080"), series("model_server_engine_up", "1x60", instance="other")],
        [series("model_server_engine_up", "1x60", instance="10.0.0.2:8080")],
        {"instance": "10.0.0.2:8080"},
    ),
    "CacheDown": ([series("cache_up", "0x60")], [series("cache_up", "1x60")], {}),
    "ApiServersDoNotAgree": (
        [
            series(name, f"{value}x60", instance=each)
            for each in ("a", "b")
            for name, value in (("api_server_agrees", 0), ("api_server_gateways", 2))
        ],
        [series("api_server_agrees", "0x60", instance="a"), series("api_server_gateways", "1x60", instance="a")],
        {},
    ),
    "ModelHasProblem": (
        [series("ollama_model_problem", "1x60", model="m", kind="load", instance=each) for each in ("a", "b")],
        [series("ollama_model_problem", "1x60", model="m", kind="waiting"), series("ollama_model_problem", "1x5", model="m", kind="load")],
        {"model": "m", "kind": "load"},
    ),
    "ReplicaIsUnready": (
        [series("ollama_ready", "0x60"), series("ollama_draining", "0x60")],
        [series("ollama_ready", "0x60"), series("ollama_draining", "1x60")],
        {},
    ),
    "GpuIsLost": (
        [series("nvml_gpu_up", "0x60", node="n", gpu="1")],
        [series("nvml_gpu_up", "1x60", node="n", gpu="1")],
        {"node": "n", "gpu": "1"},
    ),
    "GpuHasErrors": (
        [series("nvml_ecc_uncorrected_errors_total", "0x50 1x10", node="n", gpu="0")],
        [series("nvml_ecc_uncorrected_errors_total", "3x60", node="n", gpu="0")],
        {"node": "n", "gpu": "0"},
    ),
}
RULES = {rule["alert"]: rule for group in alerts.rule_groups() for rule in group["rules"]}


def promtool(work: Path, tests: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
    (work / "rules.yaml").write_text(yaml.safe_dump({"groups": alerts.rule_groups()}))
    (work / "tests.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}))
    return subprocess.run([str(packages.promtool()), "test", "rules", "tests.yaml"], cwd=work, capture_output=True, text=True, timeout=120)


SUMMARIES = {
    "ModelServerUnreachable": "10.0.0.1 of http://ollama:11434 takes no connections.",
    "RequestsWaitForServers": "Requests for m wait, and no server has the model.",
    "RequestsFail": "10% of the requests for m fail.",
    "FleetIsFull": "20% of the requests for m are refused, because all servers are busy.",
    "FirstTokenIsSlow": "One in twenty streams of m waits more than 58.33s for its first token.",
    "PromptsDoNotFit": "10% of the requests for m are longer than its context.",
    "CertificateEndsSoon": "The API server's certificate has 2.703% of its time left.",
    "ModelServerEngineDown": "The model server at 10.0.0.2:8080 is up, but its engine is not.",
    "ModelHasProblem": "m cannot answer on a replica of the fleet: load.",
    "GpuIsLost": "GPU 1 of n does not answer.",
    "GpuHasErrors": "GPU 0 of n had memory errors that could not be corrected.",
}
"""What people read, where it holds values; the others are as they are written."""


def expectation(name: str, given: list[dict[str, str]], labels: dict[str, str] | None) -> dict[str, Any]:
    """At one hour; `labels` None: nothing fires."""
    fires: list[dict[str, Any]] = []
    if labels is not None:
        rule = RULES[name]
        annotations = rule["annotations"] | ({"summary": SUMMARIES[name]} if name in SUMMARIES else {})
        fires = [{"exp_labels": {**rule["labels"], **labels}, "exp_annotations": annotations}]
    return {"interval": "1m", "input_series": given, "alert_rule_test": [{"eval_time": "1h", "alertname": name, "exp_alerts": fires}]}


def test_every_alert_has_a_case() -> None:
    assert CASES.keys() == RULES.keys()


@pytest.mark.parametrize("name", CASES)
def test_it_fires_when_it_should_and_only_then(tmp_path: Path, name: str) -> None:
    firing, quiet, labels = CASES[name]
    done = promtool(tmp_path, [expectation(name, firing, labels), expectation(name, quiet, None)])
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_tool_notices_an_alert_that_should_have_been_quiet(tmp_path: Path) -> None:
    assert promtool(tmp_path, [expectation("CacheDown", CASES["CacheDown"][0], None)]).returncode != 0
