"""Alerts that a machine without a GPU can cause fire on the stack's own Prometheus, and end when their cause has ended.

A second Prometheus of the same image, rules, policies and account looks every second, and all its durations are divided by SPEED. The other
alerts fire in tests/service/test_alerts.py: their causes are a GPU, days of waiting, or a load that two cores cannot make.
"""

import copy
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import yaml

from components import alerts
from components.contract import API_SERVER, CACHE_SERVER, MODEL_SERVER, PORTS, PROMETHEUS
from components.prometheus import configuration
from infra.lifecycle.forwarding import forwarded
from tests.cluster.conftest import SERVER_ID, Stack
from tests.cluster.kube import eventually, of_others

pytestmark = pytest.mark.cluster

NAME = "alerts-judged-fast"
SPEED = 45
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
CAUSED = {"CacheDown", "RequestsFail", "TurnsBudgetBurnsFast"}
"""By a cache server and a model server that are gone, and clients that ask for its model."""


def divided(text: str) -> str:
    """A duration, or all windows of an expression, SPEED times shorter, and no shorter than rates over looks of a second need."""
    return re.sub(r"\b(\d+)([smhd])\b", lambda found: f"{max(int(found[1]) * SECONDS[found[2]] // SPEED, 5)}s", text)


def fast_rules() -> list[dict[str, Any]]:
    groups = copy.deepcopy(alerts.rule_groups())
    for group in groups:
        group["interval"] = "1s"
        for rule in group["rules"]:
            # Names of recorded series have a duration, too, and stay.
            parts = re.split(r"(modelfleet:\w+:\w+)", rule["expr"])
            rule["expr"] = "".join(part if part.startswith("modelfleet:") else divided(part) for part in parts)
            if "for" in rule:
                rule["for"] = divided(rule["for"])
    return groups


def objects(stack: Stack) -> list[dict[str, Any]]:
    namespace = stack.outputs.namespace
    config = configuration(namespace)
    config["global"] = dict.fromkeys(("scrape_interval", "scrape_timeout", "evaluation_interval"), "1s")
    for job in config["scrape_configs"]:
        for each in job["dns_sd_configs"]:
            each["refresh_interval"] = "1s"
    template = stack.kube.get("deployment", PROMETHEUS, "-n", namespace)["spec"]["template"]
    pod, labels = template["spec"], {**template["metadata"]["labels"], "test": NAME}
    for volume in pod["volumes"]:
        if volume["name"] == "config":
            volume["configMap"]["name"] = NAME
        if volume["name"] == "data":
            volume.pop("persistentVolumeClaim")
            volume["emptyDir"] = {"sizeLimit": "256Mi"}
    metadata = {"name": NAME, "namespace": namespace}
    data = {"prometheus.yaml": yaml.safe_dump(config), "rules.yaml": yaml.safe_dump({"groups": fast_rules()})}
    port = PORTS[PROMETHEUS]
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {**metadata, "labels": labels}, "spec": pod},
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"selector": {"test": NAME}, "ports": [{"port": port}]}},
    ]


@pytest.fixture
def judge(stack: Stack) -> Iterator[str]:
    """The address of the second Prometheus."""
    namespace = stack.outputs.namespace
    with of_others(stack.kube, *objects(stack)):
        stack.kube.run("wait", f"pod/{NAME}", "-n", namespace, "--for=condition=Ready", "--timeout=90s")
        with forwarded(str(stack.kube.kubectl), stack.deployment, namespace, NAME, PORTS[PROMETHEUS]) as url:
            yield url


def firing(judge: str) -> set[str]:
    found = httpx.get(f"{judge}/api/v1/alerts", timeout=30, trust_env=False).raise_for_status().json()["data"]["alerts"]
    return {each["labels"]["alertname"] for each in found if each["state"] == "firing"}


@contextmanager
def gone(stack: Stack, *names: str) -> Iterator[None]:
    """Without their pods, until the block ends."""
    namespace = stack.outputs.namespace
    before = {name: stack.kube.get(name, "-n", namespace)["spec"]["replicas"] for name in names}
    stack.kube.run("scale", *names, "-n", namespace, "--replicas=0")
    try:
        yield
    finally:
        for name, replicas in before.items():
            stack.kube.run("scale", name, "-n", namespace, f"--replicas={replicas}")
        for name in names:
            stack.kube.run("rollout", "status", name, "-n", namespace, "--timeout=100s")


@contextmanager
def asking(stack: Stack) -> Iterator[None]:
    """Ten requests a second for the model server's model, which nobody answers, until the block ends."""
    running = True

    def ask() -> None:
        with httpx.Client(headers={"Authorization": f"Bearer {stack.key}"}, timeout=30, trust_env=False) as client:
            while running:
                body = {"model": SERVER_ID, "messages": [{"role": "user", "content": "Say it."}]}
                client.post(f"{stack.url}/v1/chat/completions", json=body)
                time.sleep(0.1)

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask)
        try:
            yield
        finally:
            running = False
    asked.result()


def test_alerts_fire_by_their_causes_and_end_with_them(stack: Stack, judge: str) -> None:
    watched = {*CAUSED, "ApiServerNotSeen"}
    # What a test before this one caused may still be there for a window.
    eventually(lambda: firing(judge), lambda found: not found & watched, 60, "no alert without a cause")
    with gone(stack, f"deployment/{CACHE_SERVER}", f"statefulset/{MODEL_SERVER}"), asking(stack):
        eventually(lambda: firing(judge), lambda found: found >= CAUSED, 90, f"{CAUSED} fire")
    with gone(stack, f"deployment/{API_SERVER}"):
        eventually(lambda: firing(judge), lambda found: "ApiServerNotSeen" in found, 90, "ApiServerNotSeen fires")
    stack.wait_for_ends()
    # The longest of their short windows is half an hour of the rules.
    eventually(lambda: firing(judge), lambda found: not found & watched, 3 * 1800 // SPEED, f"none of {watched} fires")
