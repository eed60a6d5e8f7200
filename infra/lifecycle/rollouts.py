"""StatefulSets after an update: until their newest pods are ready.

Pulumi's Kubernetes provider does wait for them, but before 4.26 it could take the state of before the change for the end of its rollout
(pulumi-kubernetes, pull request 4094): then an update that cannot end well ended well at once.
"""

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kubernetes.client import AppsV1Api
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from components.contract import PART_OF
from infra.engine.errors import CliError
from infra.engine.progress import QUIET_S, Watched
from infra.program.cluster import connect

_OWN_WAIT = ("pulumi.com/waitFor", "pulumi.com/skipAwait")
"""What says that an update waits for something else, or for nothing."""
_LOOK_S = 1.0
_PASSING = (429, 500, 502, 503, 504)
_UNKNOWN = "(the API server does not say)"


def unfinished(sets: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of those whose newest pods are not all ready, of StatefulSets as the API sends them. The rule is that of
    `kubectl rollout status`."""
    return sorted(each["metadata"]["name"] for each in sets if not _is_left_alone(each) and not _is_rolled_out(each))


def _is_left_alone(found: Mapping[str, Any]) -> bool:
    return any(name in _OWN_WAIT for name in found["metadata"].get("annotations") or {})


def _is_rolled_out(found: Mapping[str, Any]) -> bool:
    status, wanted = found.get("status") or {}, found["spec"].get("replicas", 1)
    if status.get("observedGeneration", 0) < found["metadata"]["generation"] or status.get("readyReplicas", 0) < wanted:
        return False
    return not wanted or status.get("updateRevision") == status.get("currentRevision")


def until_finished(context: str, kubeconfig: str, namespace: str, look: Callable[[], Watched], limit_s: float) -> None:
    """Wait for those of a namespace that are ours, and say what they wait for, as `look` does. Raises CliError for a cause that it calls
    hopeless, and when `limit_s` seconds are over."""
    client = connect(context, kubeconfig)
    api = AppsV1Api(client)
    started = said = time.monotonic()
    left: list[str] = []
    while left := _unfinished(client, api, namespace, left):
        time.sleep(_LOOK_S)
        now = time.monotonic()
        if now - started > limit_s:
            got = f"got pods that are not ready after {limit_s:.0f} s"
            raise CliError(f"StatefulSet/{left[0]}: {got}, want those of the newest revision; run make explain")
        if now - said < QUIET_S:
            continue
        found = look()
        for line in found.lines or [f"waiting: StatefulSet/{left[0]}"]:
            print(line, file=sys.stderr, flush=True)
        if found.hopeless:
            raise CliError(found.hopeless)
        said = time.monotonic()


def _unfinished(client: Any, api: AppsV1Api, namespace: str, before: list[str]) -> list[str]:
    try:
        listed = api.list_namespaced_stateful_set(namespace, label_selector=f"app.kubernetes.io/part-of={PART_OF}", _request_timeout=10)
    except ApiException as error:
        if error.status in (403, 404):
            # Who may not read them has nothing to wait for but what Pulumi waited for.
            return []
        if error.status not in _PASSING:
            raise
    except HTTPError:
        pass
    else:
        return unfinished(client.sanitize_for_serialization(listed)["items"])
    # As while an API server starts anew.
    return before or [_UNKNOWN]
