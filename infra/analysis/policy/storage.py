"""Rules on volumes: who makes them, and who uses them. rules.py lists them."""

from collections.abc import Sequence

from infra.analysis.policy.objects import Object, of, templates, title

_NFS_PARAMETERS = {"server", "share", "subDir", "mountPermissions", "onDelete"}
"""Source: parameters of csi-driver-nfs."""


def claims_can_be_provisioned(objects: Sequence[Object]) -> list[str]:
    """In-tree provisioners that make no volumes leave claims pending for ever."""
    return [
        f"{title(item)}: got provisioner {item.get('provisioner')}, want a CSI driver that makes volumes; name one"
        for item in of(objects, "StorageClass")
        if str(item.get("provisioner", "")).startswith("kubernetes.io/")
    ]


def storage_parameters_are_known(objects: Sequence[Object]) -> list[str]:
    return [
        f"{title(item)}: got parameter {name}, want one of {', '.join(sorted(_NFS_PARAMETERS))}; remove it"
        for item in of(objects, "StorageClass")
        if item.get("provisioner") == "nfs.csi.k8s.io"
        for name in item.get("parameters", {})
        if name not in _NFS_PARAMETERS
    ]


def volumes_are_made_by_provisioners(objects: Sequence[Object]) -> list[str]:
    by_hand = of(objects, "PersistentVolume")
    return [f"{title(item)}: got a volume by hand, want claims only; let a provisioner make it" for item in by_hand]


def claims_are_used(objects: Sequence[Object]) -> list[str]:
    used = {
        (item["metadata"].get("namespace"), volume["persistentVolumeClaim"]["claimName"])
        for item, template in templates(objects)
        for volume in template.get("spec", {}).get("volumes", [])
        if "persistentVolumeClaim" in volume
    }
    return [
        f"{title(item)}: got a claim that no pod mounts, want it used; mount or remove it"
        for item in of(objects, "PersistentVolumeClaim")
        if (item["metadata"].get("namespace"), item["metadata"]["name"]) not in used
    ]


def replicas_share_one_download(objects: Sequence[Object]) -> list[str]:
    """Replicas with a claim each also mount a claim that they share, and copy models from there. So a model is downloaded once."""
    found: list[str] = []
    for item in of(objects, "StatefulSet"):
        volumes = item["spec"]["template"].get("spec", {}).get("volumes", [])
        shared = any("persistentVolumeClaim" in volume for volume in volumes)
        if item["spec"].get("volumeClaimTemplates") and not shared:
            found.append(f"{title(item)}: got a claim for each replica and none that they share, want both; mount the shared store")
    return found
