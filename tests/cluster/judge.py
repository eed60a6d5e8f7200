"""A second Prometheus that judges the stack's own alert rules fast, and what causes their alerts.

It has the image, rules, policies and account of the stack's, looks every second, and its durations are divided: a minute of the rules is a
second, and of the promises, which look at days, a second is eight minutes.
"""

import copy
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import httpx
import yaml

from components import alerts
from components.contract import PORTS, PROMETHEUS
from components.objectives import ObjectivesArgs
from components.prometheus import configuration
from infra.lifecycle.forwarding import forwarded
from tests.cluster.conftest import Stack
from tests.cluster.kube import eventually, of_others

S = TypeVar("S")
NAME = "alerts-judged-fast"
SPEEDS = {"modelfleet": 60, "modelfleet-objectives": 480}
"""Group of rules to what its durations are divided by. The windows of a promise are six minutes to three days."""
LEAST_S = 5
"""No duration is shorter: rates over looks of a second need so many."""
PROMISE = ObjectivesArgs(first_token_seconds=1)
"""The defaults, and half a minute is divided, too."""
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def divided(text: str, speed: int) -> str:
    """A duration, or all windows of an expression."""
    return re.sub(r"\b(\d+)([smhd])\b", lambda found: f"{max(int(found[1]) * _SECONDS[found[2]] // speed, LEAST_S)}s", text)


def fast_rules() -> list[dict[str, Any]]:
    groups = copy.deepcopy(alerts.rule_groups(PROMISE))
    for group in groups:
        speed, group["interval"] = SPEEDS[group["name"]], "1s"
        for rule in group["rules"]:
            # Names of recorded series have a duration, too, and stay.
            parts = re.split(r"(modelfleet:\w+:\w+)", rule["expr"])
            rule["expr"] = "".join(part if part.startswith("modelfleet:") else divided(part, speed) for part in parts)
            if "for" in rule:
                rule["for"] = divided(rule["for"], speed)
    return groups


RULES = {rule["alert"]: rule["expr"] for group in fast_rules() for rule in group["rules"] if "alert" in rule}


@dataclass(frozen=True)
class Judge:
    url: str

    def asked(self, path: str, **parameters: str) -> Any:
        found = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=30, trust_env=False)
        return found.raise_for_status().json()["data"]

    def query(self, expression: str) -> list[float]:
        return [float(each["value"][1]) for each in self.asked("query", query=expression)["result"]]

    def firing(self, about: Mapping[str, str]) -> set[str]:
        """Names of the alerts that fire with these labels."""
        return {
            each["labels"]["alertname"]
            for each in self.asked("alerts")["alerts"]
            if each["state"] == "firing" and each["labels"].items() >= about.items()
        }

    def knows(self, name: str) -> str:
        """What it has of an alert, for who wants to know why it does not fire, or does not end."""
        states = [(each["state"], each["labels"], each["value"]) for each in self.asked("alerts")["alerts"] if _name(each) == name]
        lines = [f"{name}: states {states or 'none'}"]
        for metric in sorted(set(re.findall(r"\b(?:api_server|model_server|cache|image_scan|ollama|nvml|modelfleet)[\w:]+", RULES[name]))):
            found = [(each["metric"], each["value"][1]) for each in self.asked("query", query=metric)["result"]]
            lines.append(f"  {metric}: {found[:6] or 'nothing'}")
        down = [each["metric"] for each in self.asked("query", query="up == 0")["result"]]
        return "\n".join([*lines, f"  {RULES[name]}", f"  not scraped: {down or 'none'}"])

    def fires(self, names: Sequence[str], about: Mapping[str, str], timeout_s: float) -> None:
        """Wait until each of them has fired."""
        self._wait(names, timeout_s, "fires", lambda missing: missing - self.firing(about))

    def ends(self, names: Sequence[str], about: Mapping[str, str], timeout_s: float) -> None:
        """Wait until none of them fires."""
        self._wait(names, timeout_s, "ends", lambda left: left & self.firing(about))

    def _wait(self, names: Sequence[str], timeout_s: float, what: str, left: Callable[[set[str]], set[str]]) -> None:
        waits, deadline = set(names), time.monotonic() + timeout_s
        while waits := left(waits):
            knows = "\n".join(map(self.knows, sorted(waits))) if time.monotonic() > deadline else ""
            assert not knows, f"after {timeout_s:g} s {' and '.join(sorted(waits))} should have: {what}\n{knows}"
            time.sleep(0.5)


def _name(alert: Mapping[str, Any]) -> str:
    return str(alert["labels"]["alertname"])


@dataclass(frozen=True)
class Cause(Generic[S]):
    alerts: tuple[str, ...]
    says: str
    """What is wrong: the words of docs/alerts.md."""
    begins: Callable[[S], AbstractContextManager[object]]
    """It lasts until the block ends."""
    about: Mapping[str, str] = field(default_factory=dict)
    """Labels of the alerts."""
    within_s: float = 150


def one_after_the_other(judge: Judge, subject: S, stages: Sequence[Sequence[Cause[S]]]) -> None:
    """Each stage has causes that are there at once. Each fires its alerts, which were not there before. When they end is for `all_end` to
    see: the next stage need not wait for it."""
    for stage in stages:
        for cause in stage:
            judge.ends(cause.alerts, cause.about, 60)
        with ExitStack() as begun:
            for cause in stage:
                begun.enter_context(cause.begins(subject))
            for cause in stage:
                judge.fires(cause.alerts, cause.about, cause.within_s)
                print(f"{cause.says}: {' and '.join(cause.alerts)}")


def side_by_side(judge: Judge, subject: S, lanes: Sequence[Sequence[Sequence[Cause[S]]]]) -> None:
    """Lanes of stages. One that fails ends no other one."""
    with ThreadPoolExecutor(len(lanes)) as pool:
        running = [pool.submit(one_after_the_other, judge, subject, lane) for lane in lanes]
    failed = [f"{type(error).__name__}: {error}" for each in running if (error := each.exception()) is not None]
    assert not failed, "\n\n".join(failed)


def all_end(judge: Judge, causes: Sequence[Cause[S]], timeout_s: float) -> None:
    """Once their causes have ended: none of their alerts is there, whatever it is about."""
    judge.ends([alert for cause in causes for alert in cause.alerts], {}, timeout_s)


@contextmanager
def again_and_again(step: Callable[[], object], pause_s: float) -> Iterator[None]:
    """The step, in another thread, until the block ends. One that fails is the last one, and fails the block."""
    ended = threading.Event()

    def run() -> None:
        while not ended.is_set():
            step()
            ended.wait(pause_s)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run)
        try:
            yield
        finally:
            ended.set()
            # Why a step failed says more than that an alert did not come.
            running.result()


def _objects(stack: Stack) -> list[dict[str, Any]]:
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


@contextmanager
def judged_fast(stack: Stack) -> Iterator[Judge]:
    """Until the block ends."""
    namespace = stack.outputs.namespace
    with of_others(stack.kube, *_objects(stack)):
        stack.kube.run("wait", f"pod/{NAME}", "-n", namespace, "--for=condition=Ready", "--timeout=90s")
        with forwarded(str(stack.kube.kubectl), stack.deployment, namespace, NAME, PORTS[PROMETHEUS]) as url:
            judge = Judge(url)
            eventually(lambda: judge.query("up"), lambda found: bool(found) and all(found), 60, "every pod is read")
            yield judge
