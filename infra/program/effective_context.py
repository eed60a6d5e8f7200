"""The contexts that the running servers reported to the context probe, for the stack's outputs."""

import json
from typing import Any

import pulumi

from infra.program.settings import Settings, inputs
from infra.program.settings.section import SettingsError


def effective_contexts(settings: Settings, job: pulumi.Output[str]) -> pulumi.Output[dict[str, int]]:
    """Model to tokens, read when the probe's Job has completed. Empty in a preview and in a rendering: they talk to no cluster."""
    target = settings.cluster
    if target.render_to is not None or pulumi.runtime.is_dry_run():
        return pulumi.Output.from_input({})
    kubeconfig = inputs.kubeconfig()
    return job.apply(lambda name: _read(target.context or "", kubeconfig, target.namespace, name))


def _read(context: str, kubeconfig: dict[str, Any] | None, namespace: str, job: str) -> dict[str, int]:
    """Empty, with a warning, when the probe's pod is gone: its node was lost, or somebody deleted it."""
    from infra.program.cluster import Objects  # noqa: PLC0415 (a rendering asks no cluster, and need not import the client)

    try:
        pods = Objects(context, kubeconfig).pods(namespace, f"batch.kubernetes.io/job-name={job}")
    except SettingsError as error:
        pulumi.log.warn(f"Job/{job}: got no pods, want them; effective contexts are left out of the outputs: {error}")
        return {}
    ends = [status["state"].get("terminated") or {} for pod in pods for status in pod["status"].get("containerStatuses") or []]
    messages = [end["message"] for end in ends if end.get("exitCode") == 0 and end.get("message")]
    if not messages:
        pulumi.log.warn(f"Job/{job}: got no pod with a result, want one; effective contexts are left out until the fleet changes")
        return {}
    return {str(name): int(tokens) for name, tokens in json.loads(messages[0])["models"].items()}
