"""`make check`: what a cluster does, tried before anything of the stack is there.

Are network policies enforced, and do the classes make volumes? Jobs in a namespace of their own try it. All that they need goes again,
also what an interrupted check has left.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import kubernetes
import urllib3
from kubernetes.client.exceptions import ApiException
from pydantic import ValidationError

from components.contract import USER_ID
from infra.engine.errors import CommandError
from infra.lifecycle import gpu_node_check
from infra.lifecycle.trial import JOB_S, LABEL, Cluster, Runs, Trial
from infra.program.cluster import Objects, missing_apis
from infra.program.settings import refusals
from infra.program.settings.governance import GovernanceSettings
from infra.program.settings.gpu import GpuSettings
from infra.program.settings.section import Section, SettingsError
from infra.program.settings.services import ApiServerSettings
from infra.program.settings.storage import SharedTier, StorageSettings, Tier

POLICY_S = 20
"""A rule takes effect some seconds after its pod has started."""
VOLUME_S = 420
"""Drivers of file shares take minutes for a volume."""
CUT_OFF = "closed"
"""The pod that a policy cuts off."""
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


@dataclass(frozen=True, kw_only=True)
class Asked(Runs):
    """What a stack needs of its cluster, and what the Jobs need."""

    storage: StorageSettings
    production: bool
    """Without network policies nothing is deployed."""
    api_server: ApiServerSettings | None = None
    """What of others' it may use; None: nothing."""
    gpu: GpuSettings | None = None
    """What GPU nodes should have; None, or not enabled: there are none."""

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
    gpu: GpuSettings = GpuSettings()


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
        image=image,
        storage=found.storage,
        user_id=user_id,
        gpu=found.gpu,
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
        cluster = Cluster(kubernetes.config.new_client_from_config(config_file=kubeconfig, context=context))
        cluster.remove()
        try:
            trial = _Tried(cluster, asked)
            found = [trial.policies(asked), *(trial.volumes(name, tier) for name, tier in asked.tiers.items())]
            return [*found, *_gpu_nodes(cluster, asked)]
        finally:
            cluster.remove()
    except ApiException as error:
        said = f"{error.status} {error.reason} from cluster {context!r}"
        raise CommandError(f"check: got {said}, want leave to try it; examples/access has the rights of a deployer") from None
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise CommandError(f"check: got no answer from cluster {context!r} ({type(error).__name__}), want one; start it") from None


def _gpu_nodes(cluster: Cluster, asked: Asked) -> list[Answer]:
    if asked.gpu is None or not asked.gpu.enabled:
        return []
    lines = list(gpu_node_check.check(cluster, Trial(cluster, asked, reads_nodes=True), asked.gpu))
    wanted = ", ".join(f"{name}={value}" for name, value in asked.gpu.nodes.items())
    if not lines:
        return [Answer("", f"modelfleet:gpu.nodes: got no node with {wanted}, want one; label GPU nodes, or correct the setting")]
    return [Answer("" if line.error else line.text, line.text if line.error else "") for line in lines]


class _Tried(Trial):
    """The Jobs of policies and volumes."""

    def policies(self, asked: Asked) -> Answer:
        """Whether a policy that forbids everything cuts a pod off from what another pod reaches."""
        closed = {"podSelector": {"matchLabels": {LABEL: CUT_OFF}}, "policyTypes": ["Ingress", "Egress"]}
        self.create("networking.k8s.io/v1", "NetworkPolicy", "closed", spec=closed)
        for name in ("open", "closed"):
            self.start(name, [_REACHES, name])
        if not self.ends_well("open", JOB_S):
            got = f"{self.why('open')}, want a pod that reaches the cluster's API"
            return Answer("", f"image {asked.image}: got {got}; look at pods, images and the network of the cluster")
        if self.ends_well("closed", JOB_S):
            return Answer("network policies are enforced")
        said = (
            "network policies: got a pod that a policy cuts off, and that reaches the cluster's API all the same, want them enforced; "
            "use a network plugin that does, such as Calico or Cilium"
        )
        return Answer("", said) if asked.production else Answer(f"{said} before this is production")

    def volumes(self, name: str, tier: Tier) -> Answer:
        """Whether a claim of the tier's class and size comes with a volume that a pod can write to."""
        path, class_name, started = f"modelfleet:storage.{name}", tier.class_name or "", time.monotonic()
        if tier.provisioner is not None:
            class_name = f"{self._namespace}-{name}"
            self._cluster.create("storage.k8s.io/v1", "StorageClass", class_name, None, **_class(tier))
        mode = tier.access_mode if isinstance(tier, SharedTier) else "ReadWriteOnce"
        claim = {"accessModes": [mode], "storageClassName": class_name, "resources": {"requests": {"storage": tier.size}}}
        self.create("v1", "PersistentVolumeClaim", name, spec=claim)
        self.start(name, [_WRITES], claim=name)
        if self.ends_well(name, VOLUME_S):
            return Answer(f"{path}: a volume of {tier.size} came, and was written to, within {time.monotonic() - started:.0f} s")
        setting = f"{path}.{'className' if tier.provisioner is None else 'provisioner'}"
        want = f"want a volume of {tier.size} that a pod can write to ({mode})"
        return Answer("", f"{setting}: got {self.why(name)}, {want}; install the driver, or name another class")


def _class(tier: Tier) -> dict[str, Any]:
    return {
        "provisioner": tier.provisioner,
        "parameters": tier.parameters or None,
        "mountOptions": tier.mount_options or None,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer",
    }
