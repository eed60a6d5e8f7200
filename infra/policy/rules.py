"""What must hold of every rendering, as plain functions over Kubernetes objects.

A rule takes all objects of a stack, because most mistakes are between two of them, and returns one line for each violation:
`<kind>/<name>: got X, want Y; do Z`. They run on rendered YAML, where nothing is unknown, and in
the policy pack (__main__.py).
"""

import re
from collections.abc import Callable, Sequence

from components.contract import READER_LABEL
from infra.policy.guards import (
    claims_are_protected,
    gpu_shares_have_a_memory_limit,
    no_container_is_privileged,
    no_secret_is_in_plaintext,
    nothing_is_exposed_unasked,
    pods_stay_off_the_host,
    secrets_are_masked,
)
from infra.policy.objects import WORKLOADS, Object, containers, gpus, of, templates, title

Rule = Callable[[Sequence[Object]], list[str]]

_CLUSTER_WIDE = (
    "Namespace",
    "StorageClass",
    "PriorityClass",
    "RuntimeClass",
    "PersistentVolume",
    "ClusterRole",
    "ClusterRoleBinding",
    "ValidatingWebhookConfiguration",
)
_IMMUTABLE_IMAGE = re.compile(r"@sha256:[0-9a-f]{64}$|:src-[0-9a-f]{12}$")
"""A digest, or the tag that a build names by the content of its sources."""
_NFS_PARAMETERS = {"server", "share", "subDir", "mountPermissions", "onDelete"}
"""Source: parameters of csi-driver-nfs."""


def images_cannot_move(objects: Sequence[Object]) -> list[str]:
    return [
        f"{title(item)}: got image {container.get('image')}, want one by digest; set images.refs"
        for item, _, container in containers(objects)
        if not _IMMUTABLE_IMAGE.search(str(container.get("image", "")))
    ]


def labels_match_selectors(objects: Sequence[Object]) -> list[str]:
    found: list[str] = []
    for item, template in templates(objects):
        wanted = item.get("spec", {}).get("selector", {}).get("matchLabels", {})
        labels = template.get("metadata", {}).get("labels", {})
        if not wanted.items() <= labels.items():
            found.append(f"{title(item)}: got pod labels {dict(labels)}, want the selector's {dict(wanted)}; add them to the template")
    return found


def mounts_have_volumes(objects: Sequence[Object]) -> list[str]:
    found: list[str] = []
    for item, pod, container in containers(objects):
        claims = {claim["metadata"]["name"] for claim in item["spec"].get("volumeClaimTemplates", [])}
        volumes = claims | {volume["name"] for volume in pod.get("volumes", [])}
        found += [
            f"{title(item)}: got a mount of {mount['name']}, want a volume of that name; define it"
            for mount in container.get("volumeMounts", [])
            if mount["name"] not in volumes
        ]
    return found


def stateful_sets_have_their_service(objects: Sequence[Object]) -> list[str]:
    headless = {
        (item["metadata"].get("namespace"), item["metadata"]["name"])
        for item in of(objects, "Service")
        if item["spec"].get("clusterIP") == "None"
    }
    return [
        f"{title(item)}: got serviceName {item['spec'].get('serviceName')}, want a headless Service of that name; add it"
        for item in of(objects, "StatefulSet")
        if (item["metadata"].get("namespace"), item["spec"].get("serviceName")) not in headless
    ]


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


def objects_are_in_a_namespace(objects: Sequence[Object]) -> list[str]:
    return [
        f"{title(item)}: got no namespace, want one; it would land in default"
        for item in objects
        if item.get("kind") not in _CLUSTER_WIDE and not item.get("metadata", {}).get("namespace")
    ]


def pods_are_restricted(objects: Sequence[Object]) -> list[str]:
    found: list[str] = []
    for item, template in templates(objects):
        pod = template.get("spec", {})
        security = pod.get("securityContext", {})
        if not (security.get("runAsNonRoot") and security.get("seccompProfile", {}).get("type") == "RuntimeDefault"):
            found.append(f"{title(item)}: got a pod that may be root, want runAsNonRoot and seccomp RuntimeDefault; set them")
        if pod.get("automountServiceAccountToken") is not False:
            found.append(f"{title(item)}: got a service account token, want none; set automountServiceAccountToken to false")
    for item, _, container in containers(objects):
        security = container.get("securityContext", {})
        wanted = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
        lacking = [key for key, value in wanted.items() if security.get(key) != value]
        if lacking:
            found.append(f"{title(item)}: got container {container.get('name')} without {', '.join(lacking)}, want them; harden it")
    return found


def containers_ask_for_what_they_need(objects: Sequence[Object]) -> list[str]:
    found: list[str] = []
    for item, _, container in containers(objects):
        resources = container.get("resources", {})
        if not {"cpu", "memory"} <= set(resources.get("requests", {})) or "memory" not in resources.get("limits", {}):
            found.append(f"{title(item)}: got container {container.get('name')} without requests or memory limit, want both; set resources")
    return found


def servers_are_probed(objects: Sequence[Object]) -> list[str]:
    found: list[str] = []
    for item, template in templates(objects):
        for container in template.get("spec", {}).get("containers", []) if item["kind"] != "Job" else []:
            lacking = [probe for probe in ("readinessProbe", "livenessProbe") if probe not in container]
            if lacking or not container.get("ports"):
                what = ", ".join(lacking) or "ports"
                found.append(f"{title(item)}: got container {container.get('name')} without {what}, want them; add them")
    return found


def nothing_is_mounted_into_roots_home(objects: Sequence[Object]) -> list[str]:
    return [
        f"{title(item)}: got a mount at {mount['mountPath']}, want one that any user can write; move it"
        for item, _, container in containers(objects)
        for mount in container.get("volumeMounts", [])
        if mount["mountPath"] == "/root" or mount["mountPath"].startswith("/root/")
    ]


def gpu_pods_use_the_gpu_runtime(objects: Sequence[Object]) -> list[str]:
    found: list[str] = []
    for item, pod, container in containers(objects):
        if gpus(container) and not (pod.get("runtimeClassName") and pod.get("priorityClassName")):
            found.append(f"{title(item)}: got a GPU without runtimeClassName and priorityClassName, want both; set them")
    return found


def runtime_classes_find_gpu_nodes(objects: Sequence[Object]) -> list[str]:
    """GPU feature discovery labels nodes `nvidia.com/gpu.present=true`; `nvidia.com/gpu=present` is the form of a taint."""
    return [
        f"{title(item)}: got node selector {item.get('scheduling', {}).get('nodeSelector')}, want nvidia.com/gpu.present=true; correct it"
        for item in of(objects, "RuntimeClass")
        if "nvidia.com/gpu" in item.get("scheduling", {}).get("nodeSelector", {})
    ]


def quotas_count_what_exists(objects: Sequence[Object]) -> list[str]:
    """`limits.<extended resource>` is accepted and never counted."""
    return [
        f"{title(item)}: got {key}, want requests.{key.removeprefix('limits.')}; extended resources are counted by requests only"
        for item in of(objects, "ResourceQuota")
        for key in item["spec"].get("hard", {})
        if key.startswith("limits.") and "/" in key
    ]


def quotas_come_with_defaults(objects: Sequence[Object]) -> list[str]:
    """Under a quota on CPU or memory, a pod without requests is refused."""
    defaulted = {
        key
        for item in of(objects, "LimitRange")
        for limit in item["spec"]["limits"]
        for key in limit.get("defaultRequest", {})
    }  # fmt: skip
    return [
        f"{title(item)}: got {key} without a default request, want one; add it to the LimitRange"
        for item in of(objects, "ResourceQuota")
        for key in item["spec"].get("hard", {})
        if key in ("requests.cpu", "requests.memory") and key.removeprefix("requests.") not in defaulted
    ]


def no_container_gets_a_gpu_by_default(objects: Sequence[Object]) -> list[str]:
    """Kubernetes takes a container's maximum for its default limit where none is named, so a maximum needs a default of 0."""
    return [
        f"{title(item)}: got a default of {key}, want none; every container would take one"
        for item in of(objects, "LimitRange")
        for limit in item["spec"]["limits"]
        for key, value in {**limit.get("max", {}), **limit.get("default", {}), **limit.get("defaultRequest", {})}.items()
        if "/" in key and str(value) != "0"
    ]


def priorities_are_tiered(objects: Sequence[Object]) -> list[str]:
    """A class that evicts needs one above it, for the door that everything comes through, and one below it whose pods evict nothing.

    The uppermost class is that door's; it needs nothing above.
    """
    classes = sorted(of(objects, "PriorityClass"), key=lambda item: item["value"])
    found: list[str] = []
    for item in classes[:-1] or classes:
        above = [each for each in classes if each["value"] > item["value"]]
        waiting = [each for each in classes if each["value"] < item["value"] and each.get("preemptionPolicy") == "Never"]
        if item.get("preemptionPolicy") != "Never" and not (above and waiting):
            found.append(f"{title(item)}: got no gateway class above or no waiting class below, want three tiers; add them")
    for item, template in templates(objects):
        name = template.get("spec", {}).get("priorityClassName")
        if name and classes and name not in {each["metadata"]["name"] for each in classes}:
            found.append(f"{title(item)}: got priorityClassName {name}, want a class of the stack; define or correct it")
    return found


def everything_is_denied_by_default(objects: Sequence[Object]) -> list[str]:
    namespaces = {item["metadata"].get("namespace") for item in of(objects, *WORKLOADS)}
    denied = {
        item["metadata"].get("namespace")
        for item in of(objects, "NetworkPolicy")
        if not item["spec"].get("podSelector")
        and set(item["spec"].get("policyTypes", [])) == {"Ingress", "Egress"}
        and not item["spec"].get("ingress")
        and not item["spec"].get("egress")
    }
    return [
        f"Namespace/{name}: got no policy that denies everything, want one; select all pods and allow nothing"
        for name in sorted(str(name) for name in namespaces - denied)
    ]  # fmt: skip


def policies_that_look_names_up_may_reach_dns(objects: Sequence[Object]) -> list[str]:
    """An egress rule to a pod is of no use to a client that cannot resolve its Service's name."""
    found: list[str] = []
    for item in of(objects, "NetworkPolicy"):
        rules = item["spec"].get("egress") or []
        ports = {(port.get("port"), port.get("protocol", "TCP")) for rule in rules for port in rule.get("ports", [])}
        if any(rule.get("to") for rule in rules) and not {(53, "UDP"), (53, "TCP")} <= ports:
            found.append(f"{title(item)}: got egress without DNS, want port 53 UDP and TCP; allow it")
    return found


def replicas_share_one_download(objects: Sequence[Object]) -> list[str]:
    """Claims of single replicas are filled from one that all of them mount, not each by a download of its own."""
    found: list[str] = []
    for item in of(objects, "StatefulSet"):
        volumes = item["spec"]["template"].get("spec", {}).get("volumes", [])
        shared = any("persistentVolumeClaim" in volume for volume in volumes)
        if item["spec"].get("volumeClaimTemplates") and not shared:
            found.append(f"{title(item)}: got a claim for each replica and none that they share, want both; mount the shared store")
    return found


def traffic_stays_near(objects: Sequence[Object]) -> list[str]:
    """A Service that balances for its clients should prefer endpoints of the client's own zone. Headless ones do not balance."""
    return [
        f"{title(item)}: got trafficDistribution {item['spec'].get('trafficDistribution')}, want PreferSameZone; set it"
        for item in of(objects, "Service")
        if item["spec"].get("clusterIP") != "None" and item["spec"].get("trafficDistribution") not in ("PreferSameZone", "PreferSameNode")
    ]


def config_maps_are_used(objects: Sequence[Object]) -> list[str]:
    """Of namespaces with pods of the stack; what is written for an operator is read in the operator's own, or says who reads it."""
    namespaces = {item["metadata"].get("namespace") for item in of(objects, *WORKLOADS)}
    used = {
        volume["configMap"]["name"]
        for _, template in templates(objects)
        for volume in template.get("spec", {}).get("volumes", [])
        if "configMap" in volume
    }
    return [
        f"{title(item)}: got a ConfigMap that nothing mounts, want it read by a program; mount or remove it"
        for item in of(objects, "ConfigMap")
        if item["metadata"].get("namespace") in namespaces
        and item["metadata"]["name"] not in used
        and READER_LABEL not in item["metadata"].get("labels", {})
    ]


def policies_select_pods_that_exist(objects: Sequence[Object]) -> list[str]:
    labels = [template.get("metadata", {}).get("labels", {}) for _, template in templates(objects)]
    found: list[str] = []
    for item in of(objects, "NetworkPolicy"):
        selected = item["spec"].get("podSelector", {}).get("matchLabels", {})
        peers = [peer for rule in item["spec"].get("ingress") or [] for peer in rule.get("from", [])]
        peers += [peer for rule in item["spec"].get("egress") or [] for peer in rule.get("to", [])]
        own = [peer for peer in peers if "podSelector" in peer and "namespaceSelector" not in peer]
        wanted = [selected, *(peer["podSelector"].get("matchLabels", {}) for peer in own)]
        found += [
            f"{title(item)}: got a selector {dict(selector)} that no pod has, want a component of the stack; add it or correct the labels"
            for selector in wanted
            if selector and not any(selector.items() <= each.items() for each in labels)
        ]
    return found


RULES: tuple[Rule, ...] = (
    images_cannot_move,
    labels_match_selectors,
    mounts_have_volumes,
    stateful_sets_have_their_service,
    claims_can_be_provisioned,
    storage_parameters_are_known,
    volumes_are_made_by_provisioners,
    claims_are_used,
    objects_are_in_a_namespace,
    pods_are_restricted,
    containers_ask_for_what_they_need,
    servers_are_probed,
    nothing_is_mounted_into_roots_home,
    gpu_pods_use_the_gpu_runtime,
    runtime_classes_find_gpu_nodes,
    quotas_count_what_exists,
    quotas_come_with_defaults,
    no_container_gets_a_gpu_by_default,
    priorities_are_tiered,
    everything_is_denied_by_default,
    policies_that_look_names_up_may_reach_dns,
    policies_select_pods_that_exist,
    replicas_share_one_download,
    traffic_stays_near,
    config_maps_are_used,
    no_container_is_privileged,
    pods_stay_off_the_host,
    nothing_is_exposed_unasked,
    gpu_shares_have_a_memory_limit,
    no_secret_is_in_plaintext,
    claims_are_protected,
)
RENDERING_RULES: tuple[Rule, ...] = (*RULES, secrets_are_masked)
"""For YAML that is kept and compared; a running stack's Secrets must hold their values."""


def violations(objects: Sequence[Object], rules: Sequence[Rule] = RULES) -> list[str]:
    """Every violation of every rule."""
    return [line for rule in rules for line in rule(objects)]
