"""The contexts that the running servers reported to the context probe, for the stack's outputs."""

import json
from typing import Any

import kubernetes
import pulumi
import urllib3
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException

from infra.program.cluster import TIMEOUT_S
from infra.program.settings import Settings


def effective_contexts(settings: Settings, job: pulumi.Output[str]) -> pulumi.Output[dict[str, int]]:
    """Model to tokens, read when the probe's Job has completed. Empty in a preview and in a rendering: they talk to no cluster."""
    target = settings.cluster
    if target.render_to is not None or pulumi.runtime.is_dry_run():
        return pulumi.Output.from_input({})
    return job.apply(lambda name: _read(target.context or "", target.namespace, name))


def _read(context: str, namespace: str, job: str) -> dict[str, int]:
    """Empty, with a warning, when the probe's pod is gone: its node was lost, or somebody deleted it."""
    try:
        client = kubernetes.client.CoreV1Api(kubernetes.config.new_client_from_config(context=context))
        found: Any = client.list_namespaced_pod(namespace, label_selector=f"batch.kubernetes.io/job-name={job}", _request_timeout=TIMEOUT_S)
    except (ApiException, ConfigException, urllib3.exceptions.HTTPError, OSError) as error:
        pulumi.log.warn(f"Job/{job}: got {type(error).__name__}, want its pods; effective contexts are left out of the outputs")
        return {}
    messages = [
        status.state.terminated.message
        for pod in found.items
        for status in pod.status.container_statuses or []
        if status.state.terminated is not None and status.state.terminated.exit_code == 0
    ]
    if not messages:
        pulumi.log.warn(f"Job/{job}: got no pod with a result, want one; effective contexts are left out until the fleet changes")
        return {}
    return {str(name): int(tokens) for name, tokens in json.loads(messages[0])["models"].items()}
