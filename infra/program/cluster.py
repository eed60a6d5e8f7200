"""The cluster behind a context: which one it is, and what is in it. The wrong one is refused before any resource is registered."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

import kubernetes
import urllib3
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException

from components.contract import SHARED_CLAIM, SHARED_CLASS
from infra.program.settings.cluster import ClusterSettings
from infra.program.settings.section import SettingsError
from infra.program.settings.sections import Sections
from infra.program.settings.services import ApiServerSettings
from infra.program.settings.storage import StorageSettings

TIMEOUT_S = 5
OLDEST = (1, 32)
"""Kubernetes with everything that every stack uses: what keeps the claims of a StatefulSet is the last of it, stable since 1.32."""
CLAIMS_OF_DEVICES = (1, 34)
"""resource.k8s.io/v1, for gpu.allocation: dra."""
_GATEWAY_API = "gateway.networking.k8s.io/v1"


Kubeconfig = str | Mapping[str, Any] | None
"""Path of a kubeconfig, its content, or None for the one that kubectl finds."""


def identity(context: str, kubeconfig: Kubeconfig = None) -> str:
    """The UID of the kube-system namespace behind that context.

    Raises SettingsError when the context is unknown, or the cluster does not answer within TIMEOUT_S seconds.
    """
    return Objects(context, kubeconfig).identity()


@contextmanager
def _answering(context: str, leave: str) -> Iterator[None]:
    """Turn what goes wrong with a cluster into a SettingsError."""
    path = "modelfleet:cluster.context"
    try:
        yield
    except ApiException as error:
        got = f"{error.status} {error.reason}"
        raise SettingsError(f"{path}: got {got} from cluster {context!r}, want leave to {leave}; log in again") from None
    except (urllib3.exceptions.HTTPError, OSError, ConfigException) as error:
        reason = type(error).__name__
        raise SettingsError(f"{path}: got no answer from cluster {context!r} ({reason}), want one; start it or check the VPN") from None


def connect(context: str, kubeconfig: Kubeconfig) -> Any:
    """A client that asks once. Raises ConfigException for a context that is not there."""
    # Its connections are made from it: set afterwards, it would change nothing.
    configuration = kubernetes.client.Configuration(retries=0)
    if isinstance(kubeconfig, Mapping):
        return kubernetes.config.new_client_from_config_dict(dict(kubeconfig), context=context, client_configuration=configuration)
    return kubernetes.config.new_client_from_config(config_file=kubeconfig, context=context, client_configuration=configuration)


def with_kept_names(settings: ClusterSettings, objects: "Objects") -> ClusterSettings:
    """The settings of a stack whose claim says that it was made when names had no prefix. Raises SettingsError."""
    if settings.prefix is not None:
        return settings
    wanted = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": SHARED_CLAIM, "namespace": settings.namespace}}
    claim = objects.find(wanted)
    plain = claim is not None and claim["spec"].get("storageClassName") == SHARED_CLASS
    return settings.model_copy(update={"prefix": ""}) if plain else settings


def old_servers(settings: Sections, objects: "Objects") -> frozenset[str]:
    """Model servers that are a Deployment still, as they were before they had copies of their own. Raises SettingsError."""
    namespace = settings.cluster.namespace

    def found(component: str) -> bool:
        metadata = {"name": component, "namespace": namespace}
        return objects.find({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata}) is not None

    return frozenset(component for component in settings.server_components if found(component))


class Objects:
    """What is in a cluster, of any kind. A program has one: it connects once, and asks once for the kinds."""

    def __init__(self, context: str, kubeconfig: Kubeconfig = None) -> None:
        self._context, self._kubeconfig = context, kubeconfig
        self._client: Any = None
        self._kinds: dict[str, dict[str, Mapping[str, Any]]] = {}
        """API version to kind to what the API server says of it."""

    def find(self, wanted: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The object of that apiVersion, kind, name and namespace; None where there is none. Raises SettingsError."""
        kind, metadata = self._kind(wanted["apiVersion"], wanted["kind"]), wanted["metadata"]
        if kind is None:
            return None
        where = f"/namespaces/{metadata.get('namespace', 'default')}" if kind["namespaced"] else ""
        return self._get(f"{_api(wanted['apiVersion'])}{where}/{kind['name']}/{metadata['name']}")

    def knows(self, version: str, kind: str) -> bool:
        """Whether the cluster has objects of that kind. Raises SettingsError."""
        return self._kind(version, kind) is not None

    def identity(self) -> str:
        """The UID of the kube-system namespace. Raises SettingsError."""
        names = _contexts(self._kubeconfig)
        if self._context not in names:
            got = f"got {self._context!r}, want a context of the kubeconfig (it has {', '.join(names) or 'none at all'})"
            raise SettingsError(f"modelfleet:cluster.context: {got}; set KUBECONFIG or the context")
        found = self._get("/api/v1/namespaces/kube-system") or {}
        return str(found.get("metadata", {}).get("uid", ""))

    def pods(self, namespace: str, selector: str) -> list[Mapping[str, Any]]:
        """Pods with these labels. Raises SettingsError."""
        return list((self._get(f"/api/v1/namespaces/{namespace}/pods?{urlencode({'labelSelector': selector})}") or {}).get("items") or [])

    def version(self) -> tuple[int, int]:
        """Major and minor version of the API server; managed clusters write the minor as `33+`. Raises SettingsError."""
        found = self._get("/version") or {}
        return int(found["major"]), int(re.sub(r"\D", "", found["minor"]))

    def within(self, namespace: str) -> Iterator[Mapping[str, Any]]:
        """Every object of the namespace that can be listed and deleted. Raises SettingsError."""
        versions = ["v1", *(each["preferredVersion"]["groupVersion"] for each in (self._get("/apis") or {}).get("groups", []))]
        for version in versions:
            self._kind(version, "")
            for kind, said in self._kinds[version].items():
                if said["namespaced"] and {"list", "delete"} <= set(said["verbs"]):
                    listed = self._get(f"{_api(version)}/namespaces/{namespace}/{said['name']}") or {}
                    yield from ({**each, "kind": kind} for each in listed.get("items") or [])

    def _kind(self, version: str, kind: str) -> Mapping[str, Any] | None:
        if version not in self._kinds:
            listed = (self._get(_api(version)) or {}).get("resources", [])
            self._kinds[version] = {each["kind"]: each for each in listed if "/" not in each["name"]}
        return self._kinds[version].get(kind)

    def _get(self, path: str) -> Mapping[str, Any] | None:
        with _answering(self._context, f"get {path}"):
            self._client = self._client or connect(self._context, self._kubeconfig)
            request = self._client.param_serialize("GET", path, auth_settings=["BearerToken"], header_params={"Accept": "application/json"})
            response = self._client.call_api(*request, _request_timeout=TIMEOUT_S)
            response.read()
            if response.status == HTTPStatus.NOT_FOUND:
                return None
            found: dict[str, Any] = self._client.response_deserialize(response, {"200": "object"}).data
        return found


def _api(version: str) -> str:
    return f"/apis/{version}" if "/" in version else f"/api/{version}"


def _contexts(kubeconfig: Kubeconfig) -> list[str]:
    if isinstance(kubeconfig, Mapping):
        return sorted(str(each["name"]) for each in kubeconfig.get("contexts") or [])
    try:
        contexts: Any = kubernetes.config.list_kube_config_contexts(kubeconfig)[0]
    except ConfigException:
        return []
    return sorted(str(each["name"]) for each in contexts)


def check(settings: ClusterSettings, objects: Objects, oldest: tuple[int, int] = OLDEST) -> None:
    """Raise SettingsError unless these are of the cluster that the stack belongs to, of that version or a newer one."""
    found = objects.identity()
    if found != settings.identity:
        raise SettingsError(
            f"modelfleet:cluster.identity: got the cluster {found} behind context {settings.context!r}, want {settings.identity}, "
            "which this stack was made for; choose the right context, or another stack for another cluster"
        )
    got = objects.version()
    if got < oldest:
        shown, wanted = (".".join(map(str, each)) for each in (got, oldest))
        raise SettingsError(f"modelfleet:cluster.context: got Kubernetes {shown} behind it, want {wanted} or newer; upgrade the cluster")


def missing_apis(api_server: ApiServerSettings, objects: Objects) -> list[str]:
    """A line for each kind of others' that the API server's settings need and the cluster does not know. Raises SettingsError."""
    wanted: list[tuple[str, str, str, str]] = []
    if api_server.tls is not None and api_server.tls.issuer is not None:
        wanted.append(("apiServer.tls.issuer", "cert-manager.io/v1", "Certificate", "install cert-manager, or use tls.secret"))
    if api_server.way_in is not None and api_server.way_in.http_route is not None:
        path, install = "apiServer.wayIn.httpRoute", "install the Gateway API, or use wayIn.ingress"
        wanted.append((path, _GATEWAY_API, "HTTPRoute", install))
        if api_server.tls is not None:
            wanted.append((path, _GATEWAY_API, "BackendTLSPolicy", "install the Gateway API 1.4 or newer, or remove apiServer.tls"))
    return [
        f"modelfleet:{path}: got a cluster without {kind} of {version}, want it; {install}"
        for path, version, kind, install in wanted
        if not objects.knows(version, kind)
    ]


def check_apis(api_server: ApiServerSettings, objects: Objects) -> None:
    """Raise SettingsError unless the cluster has the kinds of others that the API server's settings need."""
    if found := missing_apis(api_server, objects):
        raise SettingsError("\n".join(found))


def check_classes(storage: StorageSettings, objects: Objects) -> None:
    """Raise SettingsError unless each class that the stack does not make itself is there."""
    tiers = {"hot": storage.hot} | ({"shared": storage.shared} if storage.shared.claim is None else {})
    for name, tier in tiers.items():
        wanted = {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": tier.class_name}}
        if tier.provisioner is None and objects.find(wanted) is None:
            got = f"modelfleet:storage.{name}.className: got {tier.class_name!r}, which the cluster does not have"
            raise SettingsError(f"{got}, want one of kubectl get storageclass; correct it, or set provisioner and the stack makes one")
