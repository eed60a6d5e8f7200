"""Refuse the wrong cluster, or none, before any resource is registered."""

from typing import Any

import kubernetes
import urllib3
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException

from infra.program.settings.cluster import ClusterSettings
from infra.program.settings.section import SettingsError

TIMEOUT_S = 5


def identity(context: str, kubeconfig: str | None = None) -> str:
    """The UID of the kube-system namespace behind that context of `kubeconfig` (default: as kubectl finds it).

    Raises SettingsError when the context is unknown, or the cluster does not answer within TIMEOUT_S seconds.
    """
    path = "modelfleet:cluster.context"
    names = _contexts(kubeconfig)
    if context not in names:
        known = ", ".join(names) or "none at all"
        raise SettingsError(f"{path}: got {context!r}, want a context of the kubeconfig (it has {known}); set KUBECONFIG or the context")
    try:
        client = kubernetes.config.new_client_from_config(config_file=kubeconfig, context=context)
        client.configuration.retries = 0
        namespace = kubernetes.client.CoreV1Api(client).read_namespace("kube-system", _request_timeout=TIMEOUT_S)
    except ApiException as error:
        got = f"{error.status} {error.reason}"
        raise SettingsError(f"{path}: got {got} from cluster {context!r}, want leave to read namespaces; log in again") from None
    except (urllib3.exceptions.HTTPError, OSError, ConfigException) as error:
        reason = type(error).__name__
        raise SettingsError(f"{path}: got no answer from cluster {context!r} ({reason}), want one; start it or check the VPN") from None
    return str(namespace.metadata.uid) if namespace.metadata else ""


def _contexts(kubeconfig: str | None) -> list[str]:
    try:
        contexts: Any = kubernetes.config.list_kube_config_contexts(kubeconfig)[0]
    except ConfigException:
        return []
    return sorted(str(each["name"]) for each in contexts)


def check(settings: ClusterSettings) -> None:
    """Raise SettingsError unless the context leads to the cluster that the stack belongs to."""
    if settings.render_to is not None or settings.context is None:
        return
    found = identity(settings.context)
    if found != settings.identity:
        raise SettingsError(
            f"modelfleet:cluster.identity: got the cluster {found} behind context {settings.context!r}, want {settings.identity}, "
            "which this stack was made for; choose the right context, or another stack for another cluster"
        )
