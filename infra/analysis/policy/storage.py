"""Rules on volumes: who makes them, and who uses them. rules.py lists them."""

from collections import Counter
from collections.abc import Iterator, Sequence

from components.contract import ONE_NODE_ANNOTATION
from infra.analysis.policy.objects import Object, annotation, of, templates, title

_PARAMETERS = {
    "nfs.csi.k8s.io": {"server", "share", "subDir", "mountPermissions", "onDelete"},
    "local.csi.openebs.io": {"storage", "volgroup", "vgpattern", "fsType", "shared", "thinProvision"},
}
"""Driver to the parameters that it knows. Source: the documentation of csi-driver-nfs, and of OpenEBS' LVM driver."""
_NEEDED = {"nfs.csi.k8s.io": ({"server"}, {"share"}), "local.csi.openebs.io": ({"storage"}, {"volgroup", "vgpattern"})}
"""Driver to groups of parameters; without one of each group it makes no volume."""


def claims_can_be_provisioned(objects: Sequence[Object]) -> list[str]:
    """In-tree provisioners that make no volumes leave claims pending for ever."""
    found = [
        f"{title(item)}: got provisioner {item.get('provisioner')}, want a CSI driver that makes volumes; name one"
        for item in of(objects, "StorageClass")
        if str(item.get("provisioner", "")).startswith("kubernetes.io/")
    ]
    return found + [
        f"{title(item)}: got no parameter {' or '.join(sorted(group))}, want one: {item['provisioner']} makes no volume without; set it"
        for item in of(objects, "StorageClass")
        for group in _NEEDED.get(item.get("provisioner", ""), ())
        if not group & set(item.get("parameters") or {})
    ]


def storage_parameters_are_known(objects: Sequence[Object]) -> list[str]:
    """Keys with a prefix, such as csi.storage.k8s.io/fstype, are Kubernetes' own."""
    return [
        f"{title(item)}: got parameter {name}, want one of {', '.join(sorted(_PARAMETERS[item['provisioner']]))}; remove it"
        for item in of(objects, "StorageClass")
        if item.get("provisioner") in _PARAMETERS
        for name in item.get("parameters") or {}
        if "/" not in name and name not in _PARAMETERS[item["provisioner"]]
    ]


def volumes_are_where_their_pods_are(objects: Sequence[Object]) -> list[str]:
    """A replica's own volume is made on the node that the scheduler chose; one that several pods mount takes all of them."""
    classes = {item["metadata"]["name"]: item for item in of(objects, "StorageClass")}
    found: list[str] = []
    for item in of(objects, "StatefulSet"):
        for claim in item.get("spec", {}).get("volumeClaimTemplates", []):
            own = classes.get(claim.get("spec", {}).get("storageClassName"))
            if own is not None and own.get("volumeBindingMode") != "WaitForFirstConsumer":
                found.append(f"{title(own)}: got volumeBindingMode {own.get('volumeBindingMode')}, want WaitForFirstConsumer; set it")
    users = Counter(name for _, template in templates(objects) for name in _claims(template))
    found += [
        f"{title(item)}: got accessModes {item.get('spec', {}).get('accessModes')} for several workloads, want ReadWriteMany; set it"
        for item in of(objects, "PersistentVolumeClaim")
        if users[item["metadata"]["name"]] > 1
        and "ReadWriteMany" not in item.get("spec", {}).get("accessModes", [])
        and annotation(item, ONE_NODE_ANNOTATION) != "true"
    ]
    return found


def _claims(template: Object) -> Iterator[str]:
    """Names of the claims that a pod mounts."""
    for volume in template.get("spec", {}).get("volumes", []):
        if "persistentVolumeClaim" in volume:
            yield volume["persistentVolumeClaim"]["claimName"]


def volumes_are_made_by_provisioners(objects: Sequence[Object]) -> list[str]:
    by_hand = of(objects, "PersistentVolume")
    return [f"{title(item)}: got a volume by hand, want claims only; let a provisioner make it" for item in by_hand]


def claims_are_used(objects: Sequence[Object]) -> list[str]:
    used = {(item["metadata"].get("namespace"), name) for item, template in templates(objects) for name in _claims(template)}
    return [
        f"{title(item)}: got a claim that no pod mounts, want it used; mount or remove it"
        for item in of(objects, "PersistentVolumeClaim")
        if (item["metadata"].get("namespace"), item["metadata"]["name"]) not in used
    ]


def replicas_share_one_download(objects: Sequence[Object]) -> list[str]:
    """Replicas with a claim each also mount a claim that they share, and copy models from there. So a model is downloaded once."""
    found: list[str] = []
    for item in of(objects, "StatefulSet"):
        if item["spec"].get("volumeClaimTemplates") and not any(_claims(item["spec"]["template"])):
            found.append(f"{title(item)}: got a claim for each replica and none that they share, want both; mount the shared store")
    return found
