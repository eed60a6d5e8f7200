"""`make check`: what a cluster does, tried before anything of the stack is there.

Are network policies enforced, and do the classes make volumes? Jobs in a namespace of their own try it. All that they need goes again,
also what an interrupted check has left.
"""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import kubernetes
import kubernetes.dynamic
import urllib3
from kubernetes.client.exceptions import ApiException
from pydantic import ValidationError

from components.contract import ARCHITECTURE, USER_ID
from infra.engine.errors import CommandError
from infra.program.cluster import Objects, missing_apis
from infra.program.settings import refusals
from infra.program.settings.governance import GovernanceSettings
from infra.program.settings.section import Section, SettingsError
from infra.program.settings.services import ApiServerSettings
from infra.program.settings.storage import SharedTier, StorageSettings, Tier

POLICY_S = 20
"""A rule takes effect some seconds after its pod has started."""
JOB_S = 120
"""For an image to be pulled, and a pod to start and end."""
VOLUME_S = 420
"""Drivers of file shares take minutes for a volume."""
CUT_OFF = "closed"
"""The pod that a policy cuts off."""
_CLAIM_IS_WELL = ("WaitForFirstConsumer", "WaitForPodScheduled", "ProvisioningSucceeded")
_LABEL = "modelfleet.dev/cluster-check"
_REACHES = f"""
import os, socket, sys, time
where = os.environ["KUBERNETES_SERVICE_HOST"], int(os.environ["KUBERNETES_SERVICE_PORT"])
for _ in range({POLICY_S}):
    try:
        socket.create_connection(where, 2).close()
        reached = "open"
    except OSError:
        reached = "closed"
    if reached == sys.argv[1]:
        sys.exit(0)
    time.sleep(1)
sys.exit(1)
"""
"""`open` ends well once the cluster's API is reached, `closed` once it is not."""
_WRITES = "open('/claim/modelfleet-check', 'w').write('written')"


@dataclass(frozen=True)
class Asked:
    """What a stack needs of its cluster, and what the Jobs need."""

    image: str
    """With Python; a Job runs it."""
    storage: StorageSettings
    user_id: int | None
    """User of the pods, and group of the volumes' files; None where the platform assigns them."""
    production: bool
    """Without network policies nothing is deployed."""
    platform: str | None = None
    """Of the image, such as linux/arm64; None: any."""
    registry_auth: str | None = None
    """dockerconfigjson for the image."""
    api_server: ApiServerSettings | None = None
    """What of others' it may use; None: nothing."""

    @property
    def tiers(self) -> Mapping[str, Tier]:
        """Those that need a class: a claim that is there needs none."""
        return {"hot": self.storage.hot} | ({"shared": self.storage.shared} if self.storage.shared.claim is None else {})


@dataclass(frozen=True)
class Answer:
    """What the cluster does about one matter, for a person: `says` when a stack can live with it, `error` when not."""

    says: str
    error: str = ""


class _Sections(Section):
    """What a check reads of a stack: there may be no keys, models or images yet."""

    storage: StorageSettings
    governance: GovernanceSettings = GovernanceSettings()
    api_server: ApiServerSettings | None = None


def image_of(config: Mapping[str, Any]) -> str:
    """The API server's, which has Python; empty for a stack that builds it."""
    return str(config.get("modelfleet:images", {}).get("refs", {}).get("api-server", ""))


def asked_of(config: Mapping[str, Any], image: str, registry_auth: str | None) -> Asked:
    """What a stack of that configuration needs. `image` takes the place of its own. Raises SettingsError."""
    names = [str(field.alias) for field in _Sections.model_fields.values()]
    sections = {name: config[f"modelfleet:{name}"] for name in names if f"modelfleet:{name}" in config}
    try:
        found = _Sections.model_validate(sections)
    except ValidationError as error:
        raise SettingsError("\n".join(refusals.lines(error, sections, _Sections, ()))) from None
    # Of another image than the stack's own nothing is known.
    platform = None if image else config.get("modelfleet:images", {}).get("platform")
    image = image or image_of(config)
    if not image:
        raise SettingsError("IMAGE: got nothing, and a stack that builds its images, want one with Python to try the cluster with; name it")
    assigned = config.get("modelfleet:cluster", {}).get("userIds") == "assigned"
    user_id = None if assigned else USER_ID
    return Asked(
        image,
        found.storage,
        user_id,
        production=found.governance.production,
        platform=platform,
        registry_auth=registry_auth,
        api_server=found.api_server,
    )


def check(context: str, kubeconfig: str, asked: Asked) -> list[Answer]:
    """Try it, which takes a minute where volumes come quickly. Raises SettingsError for a cluster that does not answer, and CommandError
    when it does not let us try."""
    objects = Objects(context, kubeconfig)
    objects.identity()
    if asked.api_server is not None and (missing := missing_apis(asked.api_server, objects)):
        # Nothing has to be tried for that.
        return [Answer("", line) for line in missing]
    try:
        cluster = _Cluster(kubernetes.config.new_client_from_config(config_file=kubeconfig, context=context))
        cluster.remove()
        try:
            trial = _Trial(cluster, asked)
            return [trial.policies(), *(trial.volumes(name, tier) for name, tier in asked.tiers.items())]
        finally:
            cluster.remove()
    except ApiException as error:
        said = f"{error.status} {error.reason} from cluster {context!r}"
        raise CommandError(f"check: got {said}, want leave to try it; examples/access has the rights of a deployer") from None
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise CommandError(f"check: got no answer from cluster {context!r} ({type(error).__name__}), want one; start it") from None


class _Cluster:
    """Objects of any kind, as plain maps."""

    def __init__(self, client: Any) -> None:
        self._client: Any = kubernetes.dynamic.DynamicClient(client)

    def create(self, version: str, kind: str, name: str, namespace: str | None, **body: Any) -> None:
        """Make an object that bears our label."""
        whole = {"apiVersion": version, "kind": kind, "metadata": {"name": name, "labels": {_LABEL: name}}, **body}
        self._of(version, kind).create(body=whole, namespace=namespace)

    def items(self, version: str, kind: str, **where: str) -> list[dict[str, Any]]:
        return list(self._of(version, kind).get(**where).to_dict()["items"])

    def remove(self) -> None:
        """All that bears our label. Namespaces go first, and claims with them; then classes, which the end of a volume may need."""
        ours = {"label_selector": _LABEL}
        for namespace in self.items("v1", "Namespace", **ours):
            self._of("v1", "Namespace").delete(name=namespace["metadata"]["name"])
        _until(lambda: not self.items("v1", "Namespace", **ours), JOB_S)
        made = [each["metadata"]["name"] for each in self.items("storage.k8s.io/v1", "StorageClass", **ours)]
        volumes = lambda: [each["spec"].get("storageClassName") for each in self.items("v1", "PersistentVolume")]  # noqa: E731
        _until(lambda: not set(made) & set(volumes()), JOB_S)
        for name in made:
            self._of("storage.k8s.io/v1", "StorageClass").delete(name=name)

    def _of(self, version: str, kind: str) -> Any:
        return self._client.resources.get(api_version=version, kind=kind)


def _until(done: Callable[[], bool], limit_s: float) -> None:
    """Return once it is done, or after the limit."""
    deadline = time.monotonic() + limit_s
    while not done() and time.monotonic() < deadline:
        time.sleep(1)


class _Trial:
    """A namespace, and the Jobs of one check in it."""

    def __init__(self, cluster: _Cluster, asked: Asked) -> None:
        self._cluster, self._asked, self._namespace = cluster, asked, f"modelfleet-check-{secrets.token_hex(3)}"
        cluster.create("v1", "Namespace", self._namespace, None)
        if asked.registry_auth is not None:
            content = {".dockerconfigjson": asked.registry_auth}
            self._create("v1", "Secret", "pull", type="kubernetes.io/dockerconfigjson", stringData=content)

    def policies(self) -> Answer:
        """Whether a policy that forbids everything cuts a pod off from what another pod reaches."""
        closed = {"podSelector": {"matchLabels": {_LABEL: CUT_OFF}}, "policyTypes": ["Ingress", "Egress"]}
        self._create("networking.k8s.io/v1", "NetworkPolicy", "closed", spec=closed)
        for name in ("open", "closed"):
            self._start(name, [_REACHES, name])
        if not self._ends_well("open", JOB_S):
            got = f"{self._why('open')}, want a pod that reaches the cluster's API"
            return Answer("", f"image {self._asked.image}: got {got}; look at pods, images and the network of the cluster")
        if self._ends_well("closed", JOB_S):
            return Answer("network policies are enforced")
        said = (
            "network policies: got a pod that a policy cuts off, and that reaches the cluster's API all the same, want them enforced; "
            "use a network plugin that does, such as Calico or Cilium"
        )
        return Answer("", said) if self._asked.production else Answer(f"{said} before this is production")

    def volumes(self, name: str, tier: Tier) -> Answer:
        """Whether a claim of the tier's class and size comes with a volume that a pod can write to."""
        path, class_name, started = f"modelfleet:storage.{name}", tier.class_name or "", time.monotonic()
        if tier.provisioner is not None:
            class_name = f"{self._namespace}-{name}"
            self._cluster.create("storage.k8s.io/v1", "StorageClass", class_name, None, **_class(tier))
        mode = tier.access_mode if isinstance(tier, SharedTier) else "ReadWriteOnce"
        claim = {"accessModes": [mode], "storageClassName": class_name, "resources": {"requests": {"storage": tier.size}}}
        self._create("v1", "PersistentVolumeClaim", name, spec=claim)
        self._start(name, [_WRITES], claim=name)
        if self._ends_well(name, VOLUME_S):
            return Answer(f"{path}: a volume of {tier.size} came, and was written to, within {time.monotonic() - started:.0f} s")
        setting = f"{path}.{'className' if tier.provisioner is None else 'provisioner'}"
        want = f"want a volume of {tier.size} that a pod can write to ({mode})"
        return Answer("", f"{setting}: got {self._why(name)}, {want}; install the driver, or name another class")

    def _create(self, version: str, kind: str, name: str, **body: Any) -> None:
        self._cluster.create(version, kind, name, self._namespace, **body)

    def _start(self, name: str, command: list[str], claim: str | None = None) -> None:
        asked = self._asked
        container = {
            "name": "check",
            "image": asked.image,
            "command": ["python3", "-c", *command],
            "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"cpu": "1", "memory": "128Mi"}},
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True},
            "volumeMounts": [{"name": "claim", "mountPath": "/claim"}] if claim else [],
        }
        user = {} if asked.user_id is None else {"runAsUser": asked.user_id, "fsGroup": asked.user_id}
        pod = {
            "automountServiceAccountToken": False,
            "restartPolicy": "Never",
            "nodeSelector": {ARCHITECTURE: asked.platform.partition("/")[2]} if asked.platform else {},
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}, **user},
            "imagePullSecrets": [{"name": "pull"}] if asked.registry_auth is not None else [],
            "containers": [container],
            "volumes": [{"name": "claim", "persistentVolumeClaim": {"claimName": claim}}] if claim else [],
        }
        template = {"metadata": {"labels": {_LABEL: name}}, "spec": pod}
        self._create("batch/v1", "Job", name, spec={"backoffLimit": 0, "template": template})

    def _ends_well(self, name: str, limit_s: float) -> bool:
        def status() -> dict[str, Any]:
            [job] = self._cluster.items("batch/v1", "Job", namespace=self._namespace, field_selector=f"metadata.name={name}")
            return dict(job.get("status") or {})

        _until(lambda: bool(status().get("succeeded") or status().get("failed")), limit_s)
        return bool(status().get("succeeded"))

    def _why(self, name: str) -> str:
        """What the cluster says about the Job of that name, its pod and its claim."""
        events = self._cluster.items("v1", "Event", namespace=self._namespace)
        return cause([each for each in events if each["involvedObject"]["name"].partition("-")[0] == name])


def cause(events: Sequence[Mapping[str, Any]]) -> str:
    """What kept a pod from running: what was said about its claim, unless that one waits for the pod or is there; the last warning, or else
    the last event. A claim without a volume is never more than an ordinary event, and the pod's warning of it names no reason."""

    def weight(event: Mapping[str, Any]) -> tuple[bool, bool, str]:
        of_claim = event["involvedObject"]["kind"] == "PersistentVolumeClaim" and event["reason"] not in _CLAIM_IS_WELL
        return of_claim, event.get("type") == "Warning", event.get("lastTimestamp") or event["metadata"]["creationTimestamp"]

    last = max(events, key=weight, default=None)
    return f"{last['reason']} ({last['message']})" if last else "nothing"


def _class(tier: Tier) -> dict[str, Any]:
    return {
        "provisioner": tier.provisioner,
        "parameters": tier.parameters or None,
        "mountOptions": tier.mount_options or None,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer",
    }
