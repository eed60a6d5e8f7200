"""The stack's own Prometheus on a real cluster: it reads every pod, nobody else reads it, and `make usage` says what a key has used."""

import argparse
import csv
import dataclasses
import io
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from components import dashboards
from components.alerts import rule_groups
from components.contract import API_SERVER, METRICS_EXPORTER, PROMETHEUS, SCAN_RESULT, SCRAPED
from components.prometheus import SCRAPE_S
from infra.lifecycle import embedded as lifecycle
from infra.lifecycle import looking, usage
from infra.lifecycle.deployment import Deployment
from tests.cluster.conftest import MODEL, SERVER_ID, Stack
from tests.cluster.kube import Kube, eventually
from tests.cluster.test_ownership import account

pytestmark = pytest.mark.cluster


def asked(stack: Stack, path: str) -> Any:
    """What Prometheus answers, by a port of ours that leads to it."""
    target = lifecycle.EmbeddedCluster("dev")
    with target.prometheus(stack.deployment) as url:
        return httpx.get(f"{url}/api/v1/{path}", timeout=30, trust_env=False).raise_for_status().json()["data"]


def targets(stack: Stack) -> dict[tuple[str, str], str]:
    """Component and address to whether it is up."""
    return {(each["labels"]["job"], each["labels"]["instance"]): each["health"] for each in asked(stack, "targets")["activeTargets"]}


def pods(stack: Stack) -> set[tuple[str, str]]:
    """Component and address of what should be read."""
    items = stack.kube.get("pods", "-n", stack.outputs.namespace, "-l", "app.kubernetes.io/part-of=modelfleet")["items"]
    found = [(each["metadata"]["labels"]["app.kubernetes.io/name"], each["status"].get("podIP")) for each in items]
    return {(component, f"{address}:{SCRAPED[component]}") for component, address in found if component in SCRAPED}


def test_it_is_up_and_reads_every_pod_that_has_metrics(stack: Stack) -> None:
    read = lambda: targets(stack)  # noqa: E731
    found = eventually(read, lambda now: now == dict.fromkeys(pods(stack), "up"), 120, "every target is up, and there is no other")
    assert {component for component, _ in found} == set(SCRAPED)
    rules = [rule for group in asked(stack, "rules")["groups"] for rule in group["rules"]]
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
    assert len(rules) == sum(len(group["rules"]) for group in rule_groups())


def test_kubelets_have_what_panels_ask_of_them(stack: Stack) -> None:
    """By name, for pods of the stack. What no container has that has no limit of CPU, as ours, is left out."""
    panels = [panel for text in dashboards.files().values() for panel in json.loads(text)["panels"]]
    expressions = " ".join(target["expr"] for panel in panels for target in panel.get("targets", []))
    wanted = {name for name in re.findall(r"\bcontainer_\w+", expressions) if "_cfs_" not in name}
    assert {"container_memory_working_set_bytes", "container_network_receive_bytes_total"} <= wanted
    sample = re.compile(rf'^(container_\w+){{[^}}]*\bnamespace="{stack.outputs.namespace}"', re.MULTILINE)

    def missing() -> set[str]:
        """Names that no kubelet has: each reads its containers some seconds after they begin."""
        texts = [stack.kube.run("get", "--raw", f"/api/v1/nodes/{node.name}/proxy/metrics/cadvisor") for node in stack.cluster.nodes]
        return wanted - {name for text in texts for name in sample.findall(text)}

    eventually(missing, lambda names: not names, 60, "metrics of containers that panels show")


def test_the_result_of_a_scan_reaches_prometheus(stack: Stack, tmp_path: Path) -> None:
    """From an account that may do no more, by the file that the kubelet brings, without a new pod."""
    namespace, finished = stack.outputs.namespace, round(datetime.now(UTC).timestamp())
    before = pods(stack)
    result = {"finished": finished, "images": 9, "unread": 0, "vulnerabilities": {"critical": 0, "high": 4}}
    with account(stack, "scanner", tmp_path) as kubeconfig:
        assert Kube(stack.kube.kubectl, Path(kubeconfig)).get("pods", "-n", namespace)["items"]
        for _ in range(2):
            looking.keep(stack.target, dataclasses.replace(stack.deployment, kubeconfig=kubeconfig), result)
    try:
        stack.kube.touch(namespace, METRICS_EXPORTER)
        query = 'query?query=image_scan_vulnerabilities{severity="high"}'
        found = eventually(lambda: asked(stack, query)["result"], bool, 150, "the metric of a scan")
        assert [each["value"][1] for each in found] == ["4"]
        (told,) = asked(stack, "query?query=image_scan_timestamp_seconds")["result"]
        assert float(told["value"][1]) == finished
        assert pods(stack) == before
    finally:
        stack.kube.run("delete", "configmap", SCAN_RESULT, "-n", namespace)


def wait_until_read(stack: Stack) -> None:
    """Until Prometheus has read each API server after now: what was asked before is in it."""
    now = datetime.now(UTC)

    def unread() -> set[tuple[str, str]]:
        found = asked(stack, "targets")["activeTargets"]
        read = {each["labels"]["instance"] for each in found if datetime.fromisoformat(each["lastScrape"]) > now}
        return {(component, address) for component, address in pods(stack) if component == API_SERVER and address not in read}

    eventually(unread, lambda left: not left, 4 * SCRAPE_S, "every API server was read")


def test_usage_has_the_chats_of_a_key(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    """By the command's own forwarded port, and exactly."""
    wait_until_read(stack)
    body = {"messages": [{"role": "user", "content": "Say it."}], "max_tokens": 64, "temperature": 0}
    before = {MODEL: (0, 0), SERVER_ID: (0, 0)} | counted(stack, capsys)
    wanted = {MODEL: 3, SERVER_ID: 2}
    tokens = dict.fromkeys(wanted, 0)
    for model, times in wanted.items():
        for _ in range(times):
            headers = {"Authorization": f"Bearer {stack.key}"}
            response = httpx.post(f"{stack.url}/v1/chat/completions", json={**body, "model": model}, headers=headers, timeout=60)
            assert response.status_code == 200, response.text
            tokens[model] += response.json()["usage"]["completion_tokens"]
    expected = {model: (before[model][0] + times, before[model][1] + tokens[model]) for model, times in wanted.items()}
    eventually(lambda: counted(stack, capsys), lambda found: found | expected == found, 90, f"usage is {expected}")


class Ours(lifecycle.EmbeddedCluster):
    """The cluster of the tests, where the command looks for the one of `make up`."""

    made: Deployment

    def deployment(self) -> Deployment:
        return self.made


def counted(stack: Stack, capsys: pytest.CaptureFixture[str]) -> dict[str, tuple[int, int]]:
    """Requests and completion tokens of the key `first`, by model, as the command prints them."""
    target = Ours("dev")
    object.__setattr__(target, "made", stack.deployment)
    usage.show(target, argparse.Namespace(days="2", csv="1", prometheus="", stack="dev"))
    found: dict[str, tuple[int, int]] = {}
    for row in csv.DictReader(io.StringIO(capsys.readouterr().out)):
        if row["key"] == "first":
            requests, tokens = found.get(row["model"], (0, 0))
            found[row["model"]] = requests + int(row["requests"]), tokens + int(row["completion_tokens"])
    return found


def test_the_account_of_prometheus_may_do_nothing(stack: Stack) -> None:
    namespace = stack.outputs.namespace
    account = f"--as=system:serviceaccount:{namespace}:{PROMETHEUS}"
    for verb, what in (("list", "pods"), ("get", "secrets"), ("get", "configmaps"), ("create", "pods")):
        assert stack.kube.run("auth", "can-i", verb, what, "-n", namespace, account, check=False).strip() == "no", f"{verb} {what}"


def test_samples_outlive_the_pod(stack: Stack) -> None:
    namespace, oldest = stack.outputs.namespace, "query?query=min(min_over_time(timestamp(api_server_reserved_bytes)[1h:15s]))"
    read = lambda: asked(stack, oldest)["result"]  # noqa: E731
    before = float(eventually(read, bool, 60, "a sample")[0]["value"][1])
    stack.kube.run("delete", "pod", "-n", namespace, "-l", f"app.kubernetes.io/name={PROMETHEUS}")
    stack.kube.run("rollout", "status", f"deployment/{PROMETHEUS}", "-n", namespace, "--timeout=120s")
    assert float(asked(stack, oldest)["result"][0]["value"][1]) == before
