"""Rules on what runs: images, pods, containers, and what they mount. rules.py lists them."""

import re
from collections.abc import Sequence

from components.contract import READER_LABEL
from infra.analysis.policy.objects import WORKLOADS, Object, all_containers, containers, of, templates, title

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


def images_cannot_move(objects: Sequence[Object]) -> list[str]:
    found = [
        f"{title(item)}: got image {container.get('image')}, want one by digest; set images.refs"
        for item, _, container in containers(objects)
        if not _IMMUTABLE_IMAGE.search(str(container.get("image", "")))
    ]
    return found + [
        f"{title(item)}: got imagePullPolicy Never, want an image that is pulled and checked; remove it"
        for item, _, container in containers(objects)
        if container.get("imagePullPolicy") == "Never"
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


def nothing_weakens_the_sandbox(objects: Sequence[Object]) -> list[str]:
    """What a pod or one of its containers says for itself goes before what the pod is held to."""
    found: list[str] = []
    for item, template in templates(objects):
        pod = template.get("spec", {})
        own = [container.get("securityContext", {}) for container in all_containers(pod)]
        for security in (pod.get("securityContext", {}), *own):
            for field in ("seccompProfile", "appArmorProfile"):
                if (security.get(field) or {}).get("type", "RuntimeDefault") not in ("RuntimeDefault", "Localhost"):
                    found.append(f"{title(item)}: got {field} {security[field].get('type')}, want RuntimeDefault; remove it")
            for field, usual in (("procMount", "Default"), ("sysctls", [])):
                if security.get(field, usual) != usual:
                    found.append(f"{title(item)}: got {field} {security[field]}, want the runtime's own; remove it")
    return found


def ollama_keeps_its_models_on_a_volume(objects: Sequence[Object]) -> list[str]:
    """Without these variables Ollama takes ~/.ollama, which is nobody's volume, and on a read-only root no place at all."""
    found: list[str] = []
    for item, _, container in containers(objects):
        env = {each.get("name"): str(each.get("value")) for each in container.get("env", [])}
        if "OLLAMA_HOST" not in env:
            continue
        mounts = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
        found += [
            f"{title(item)}: got {name} {env.get(name)} in container {container.get('name')}, want a path on a volume; set it"
            for name in ("HOME", "OLLAMA_MODELS")
            if not any(env.get(name) == mount or env.get(name, "").startswith(f"{mount}/") for mount in mounts)
        ]
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


def config_maps_are_used(objects: Sequence[Object]) -> list[str]:
    """Every ConfigMap in a namespace with pods of the stack is mounted, or has a label that names the program which reads it."""
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
