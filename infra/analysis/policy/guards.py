"""Rules about what a stack must not open up: the host, the network, other tenants' GPU memory, secrets, and data.

Same form as the rules of infra/analysis/policy/rules.py, which lists them.
"""

import re
from collections.abc import Iterator, Sequence

import yaml

from components.contract import COPIES_ANNOTATION, DATA_LABEL, EXPOSED_ANNOTATION, GPU_MEMORY_ANNOTATION, PROTECTED_ANNOTATION
from infra.analysis.policy.objects import Object, all_containers, annotation, containers, of, templates, title

MASK = "REDACTED"
"""Stands for every value of a Secret in a rendering that is kept. It happens to be base64, so that an API server takes it."""
MPS_LIMIT = "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"
"""Source: NVIDIA's documentation of the Multi-Process Service; the MPS server enforces it for each client."""

SECRET_NAME = re.compile(r"(PASSWORD|PASSWD|PASSPHRASE|SECRET|TOKEN|CREDENTIALS?|(^|[_-])KEYS?)$", re.IGNORECASE)
_SECRET_LINE = re.compile(
    r"^\s*(requirepass|masterauth|password|passwd|secret|token|api[_-]?key)\s*[:=\s]\s*\S+", re.IGNORECASE | re.MULTILINE
)
_SECRET_VALUE = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|\b(sk-[A-Za-z0-9_-]{20,}|hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|nvapi-[A-Za-z0-9_-]{20,}|AKIA[0-9A-Z]{16})\b"
    r"|\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\."
    r"|://[^/\s:@]*:[^/\s:@]+@"
)
"""Private keys, vendors' key prefixes, signed tokens, and a password inside an address."""


def no_container_is_privileged(objects: Sequence[Object]) -> list[str]:
    found: list[str] = []
    for item, _, container in containers(objects):
        security = container.get("securityContext", {})
        got = ["privileged"] if security.get("privileged") else []
        got += ["runAsUser 0"] if security.get("runAsUser") == 0 else []
        got += ["runAsNonRoot false"] if security.get("runAsNonRoot") is False else []
        got += ["added capabilities"] if security.get("capabilities", {}).get("add") else []
        if got:
            found.append(
                f"{title(item)}: got container {container.get('name')} with {', '.join(got)}, want neither root nor privileges; remove it"
            )
    for item, template in templates(objects):
        if template.get("spec", {}).get("securityContext", {}).get("runAsUser") == 0:
            found.append(f"{title(item)}: got pods with runAsUser 0, want another user; set it")
    return found


def pods_stay_off_the_host(objects: Sequence[Object]) -> list[str]:
    found: list[str] = []
    for item, template in templates(objects):
        pod = template.get("spec", {})
        got = [key for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key)]
        got += [f"hostPath volume {volume.get('name')}" for volume in pod.get("volumes", []) if "hostPath" in volume]
        got += [
            f"hostPort {port['hostPort']}"
            for container in all_containers(pod)
            for port in container.get("ports", [])
            if port.get("hostPort")
        ]
        found += [f"{title(item)}: got {what}, want pods that share nothing with their node; remove it" for what in got]
    return found


def nothing_is_exposed_unasked(objects: Sequence[Object]) -> list[str]:
    """A load balancer has a price and a public address, and a port of every node has many."""
    found: list[str] = []
    for item in of(objects, "Service"):
        kind = item.get("spec", {}).get("type", "ClusterIP")
        if kind in ("LoadBalancer", "NodePort") and annotation(item, EXPOSED_ANNOTATION) != kind:
            found.append(
                f"{title(item)}: got type {kind}, want ClusterIP unless asked for; "
                f"set apiServer.serviceType, or annotate {EXPOSED_ANNOTATION}"
            )
        if item.get("spec", {}).get("externalIPs"):
            found.append(f"{title(item)}: got externalIPs, want none; use apiServer.serviceType")
    return found


def _limited_shares(objects: Sequence[Object]) -> bool:
    """Whether the device plugin's configuration in this stack makes shares whose memory is limited, or the stack says that it is not."""
    for item in of(objects, "ConfigMap"):
        for text in (item.get("data") or {}).values():
            if "sharing:" not in str(text):
                continue
            sharing = (yaml.safe_load(str(text)) or {}).get("sharing") or {}
            if "mps" in sharing or ("timeSlicing" in sharing and annotation(item, GPU_MEMORY_ANNOTATION) == "not-isolated"):
                return True
    return False


def gpu_shares_have_a_memory_limit(objects: Sequence[Object]) -> list[str]:
    """MPS limits a share's memory and MIG a partition's (`nvidia.com/mig-*`); time-slicing limits nothing, and has to be acknowledged."""
    found: list[str] = []
    limited = _limited_shares(objects)
    for item, _, container in containers(objects):
        env = {each.get("name"): each.get("value") for each in container.get("env", [])}
        shared = [key for key in container.get("resources", {}).get("limits", {}) if re.fullmatch(r"nvidia\.com/.+\.shared", key)]
        if shared and not (limited or env.get(MPS_LIMIT)):
            want = f"MPS in the device plugin's configuration, or {MPS_LIMIT}"
            found.append(
                f"{title(item)}: got {shared[0]} without a memory limit, want {want}; set it, or use a whole GPU or a MIG partition"
            )
        if env.get("NVIDIA_VISIBLE_DEVICES") == "all" and env.get("NVIDIA_DRIVER_CAPABILITIES") != "utility":
            found.append(
                f"{title(item)}: got every GPU without a claim, want NVIDIA_DRIVER_CAPABILITIES=utility; it could fill their memory"
            )
    return found


def _texts(objects: Sequence[Object]) -> Iterator[tuple[Object, str, str]]:
    """(object, where, text) of everything that is stored and shown in plaintext."""
    for item, _, container in containers(objects):
        for env in container.get("env", []):
            yield item, f"env {env.get('name')}", str(env.get("value") or "")
        for text in [*container.get("command", []), *container.get("args", [])]:
            yield item, f"an argument of {container.get('name')}", str(text)
    for item in of(objects, "ConfigMap"):
        for key, text in (item.get("data") or {}).items():
            yield item, key, str(text)


def no_secret_is_in_plaintext(objects: Sequence[Object]) -> list[str]:
    """Pods get secrets as files of a Secret: what is in the environment or a ConfigMap is seen by everyone who may list objects."""
    found: list[str] = []
    for item, where, text in _texts(objects):
        named = bool(text) and bool(SECRET_NAME.search(where))
        if named or _SECRET_VALUE.search(text) or (item.get("kind") == "ConfigMap" and _SECRET_LINE.search(text)):
            found.append(f"{title(item)}: got what looks like a secret in {where}, want a Secret mounted as a file; move it")
    return found


def claims_are_protected(objects: Sequence[Object]) -> list[str]:
    """Models outlive the stack, unless its Namespace says that they are disposable."""
    purposes = [(item.get("metadata", {}).get("labels") or {}).get(DATA_LABEL) for item in of(objects, "Namespace")]
    if purposes and all(purpose in ("disposable", "none") for purpose in purposes):
        return []
    remedy = "set storage.retain"
    found = [
        f"{title(item)}: got reclaimPolicy {item.get('reclaimPolicy', 'Delete')}, want Retain; {remedy}"
        for item in of(objects, "StorageClass")
        if item.get("reclaimPolicy") != "Retain" and annotation(item, COPIES_ANNOTATION) != "disposable"
    ]
    for item in of(objects, "StatefulSet"):
        if annotation(item, COPIES_ANNOTATION) == "disposable":
            continue
        policy = item.get("spec", {}).get("persistentVolumeClaimRetentionPolicy") or {}
        if item.get("spec", {}).get("volumeClaimTemplates") and "Delete" in policy.values():
            found.append(f"{title(item)}: got claims that go with it, want Retain when deleted and scaled; {remedy}")
    found += [
        f"{title(item)}: got a claim that can be deleted, want it protected; {remedy}"
        for item in of(objects, "PersistentVolumeClaim")
        if annotation(item, PROTECTED_ANNOTATION) != "true" and annotation(item, COPIES_ANNOTATION) != "disposable"
    ]
    return found


def secrets_are_masked(objects: Sequence[Object]) -> list[str]:
    return [
        f"{title(item)}: got the value of {key}, want {MASK}; a rendering is kept and shown"
        for item in of(objects, "Secret")
        for field in ("data", "stringData")
        for key, value in (item.get(field) or {}).items()
        if value != MASK
    ]
