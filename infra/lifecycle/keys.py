"""`make key NAME=…`: a key of the API server more, or one less; no pod is restarted for it. `make cache-password`: another one."""

import argparse
import json
import re
import secrets
import time
from collections.abc import Mapping
from typing import Any

import kubernetes
import urllib3
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException

from components.contract import API_SERVER, KEYS_CHANGED_ANNOTATION, selector
from infra.engine.errors import CommandError
from infra.lifecycle.bring_up import say
from infra.lifecycle.deployment import Deployment
from infra.lifecycle.target import Target
from infra.program.cluster import connect
from infra.program.settings import keys

_CONFIG = f"modelfleet:{keys.SETTING}"
_CACHE_PASSWORD = "modelfleet:cachePassword"  # noqa: S105 (its name)
_TIMEOUT_S = 10


def change(deployment: Deployment | None, name: str, *, revoke: bool) -> None:
    """Make or revoke the key of that name: in the stack's encrypted configuration, then in the cluster. A new key is printed, once.

    Raises CommandError, CliError and RefusedError.
    """
    if not re.fullmatch(keys.NAME, name):
        raise CommandError(f"NAME: got {name[:80]!r}, want 1 to 63 letters, digits, and . _ - @, such as alice; run make key NAME=alice")
    if deployment is None or not deployment.cli.has_stack():
        raise CommandError("key: got no stack, want one that is up; run make up")
    if deployment.shared:
        # It only compares.
        deployment.configure({})
    known = _known(deployment)
    if revoke:
        _revoke(deployment, known, name)
    else:
        _add(deployment, known, name)
    # What else has changed in the configuration goes with it, as with every update. A key waits for no StatefulSet that is not ready.
    deployment.cli.update("up")
    touched = _touch(deployment)
    say(f"key: {name} is {'revoked' if revoke else 'accepted'}; " + (touched or "the pods read it within 90 s, for none could be told"))


def rotate_cache_password(target: Target, options: argparse.Namespace) -> None:
    """Another password of the cache server, and of each of its users. The pods that know it are replaced one by one.

    Raises CommandError, CliError and RefusedError.
    """
    deployment = target.deployment()
    if deployment is None or not deployment.cli.has_stack():
        raise CommandError(f"{options.command}: got no stack, want one that is up; run make up")
    if deployment.shared:
        # It only compares.
        deployment.configure({})
    deployment.cli.run("config", "set", "--secret", _CACHE_PASSWORD, stdin=secrets.token_hex(16))
    deployment.update()
    say("cache-password: it is another one now; what the cache server had is gone")


def _known(deployment: Deployment) -> dict[str, Mapping[str, Any]]:
    """Name to key, and what it may use; those of an old list have names from now on. Raises CliError and CommandError."""
    found = json.loads(deployment.cli.run("config", "get", _CONFIG))
    if problems := list(keys.problems(found, None)):
        raise CommandError("\n".join(problems))
    return dict(keys.with_names(found))


def _add(deployment: Deployment, known: Mapping[str, Mapping[str, Any]], name: str) -> None:
    if name in known:
        raise CommandError(f"NAME: got {name}, which has a key, want another name; REVOKE=1 takes the key back")
    key = secrets.token_urlsafe(24)
    if _stands_open(deployment):
        deployment.cli.run("config", "set", "--secret", "--path", _path(name, "key"), stdin=key)
    else:
        _write(deployment, {**known, name: {"key": key}})
    # Now: an update that fails later leaves it in the configuration, and the next one goes on with it.
    print(f"{name}: {key}", flush=True)


def _revoke(deployment: Deployment, known: Mapping[str, Mapping[str, Any]], name: str) -> None:
    if name not in known:
        raise CommandError(f"NAME: got {name}, want one of {', '.join(known)}; correct it")
    if len(known) == 1:
        raise CommandError(f"NAME: got {name}, the only key, want another one beside it; run make key NAME=other first")
    if not deployment.shared and known[name]["key"] == deployment.key():
        raise CommandError(f"NAME: got {name}, the key that make up asks the models with, want another one; it goes with make down")
    if _stands_open(deployment):
        deployment.cli.run("config", "rm", "--path", _path(name))
    else:
        _write(deployment, {each: entry for each, entry in known.items() if each != name})


def _stands_open(deployment: Deployment) -> bool:
    """Whether names stand readable in the file, and each key is encrypted by itself."""
    value = deployment.cli.read_config().get(_CONFIG)
    return isinstance(value, dict) and "secure" not in value


def _write(deployment: Deployment, every: Mapping[str, Mapping[str, Any]]) -> None:
    deployment.cli.run("config", "set", "--secret", _CONFIG, stdin=json.dumps(every))


def _path(*parts: str) -> str:
    return _CONFIG + "".join(f"[{json.dumps(part)}]" for part in parts)


def _touch(deployment: Deployment) -> str:
    """Have the kubelets bring the new file now, which they do when an annotation of a pod changes. What came of it; empty: nothing."""
    try:
        core: Any = kubernetes.client.CoreV1Api(connect(deployment.context, deployment.kubeconfig))
        namespace = deployment.namespace
        label = ",".join(f"{name}={value}" for name, value in selector(API_SERVER).items())
        pods = core.list_namespaced_pod(namespace, label_selector=label, _request_timeout=_TIMEOUT_S).items
        note = {"metadata": {"annotations": {KEYS_CHANGED_ANNOTATION: f"{time.time():.0f}"}}}
        for pod in pods:
            core.patch_namespaced_pod(pod.metadata.name, namespace, note, _request_timeout=_TIMEOUT_S)
    except (ApiException, urllib3.exceptions.HTTPError, OSError, ConfigException):
        return ""
    return f"{len(pods)} pods of the API server read it now, within 5 s" if pods else ""
