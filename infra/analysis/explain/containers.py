"""Problems of containers on their nodes: sandboxes, volumes, images, configuration, exits, probes."""

import re
from collections.abc import Iterator

from components.contract import API_SERVER, MODEL_WRITER, OLLAMA
from components.ollama_agent import AGENT
from infra.analysis.explain.facts import Container, Facts, Finding, key, one_line
from infra.analysis.explain.snapshot import Object

_PULL = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable", "ImageInspectError")
_UNREACHABLE = r"dial tcp|no such host|connection refused|i/o timeout|deadline exceeded|x509|EOF|server misbehaving|\b50[0234]\b"
_DENIED = r"\b401\b|\b403\b|[Uu]nauthorized|denied|authorization failed|authentication required"
_NO_MODEL = r"got no manifest in|got no directory manifests|model '?[^\s']+'? not found|got no blob"
_SIGNALS = {137: ", killed", 139: ", a segmentation fault", 143: ", ended by SIGTERM", 126: ", not executable", 127: ", no such command"}
_STUCK_S = 60


def _pod(pod: Object) -> frozenset[str]:
    return frozenset({key(pod, "Pod")})


def sandbox(facts: Facts) -> Iterator[Finding]:
    """Pods whose sandbox the node's runtime refuses; a RuntimeClass names a handler but installs none."""
    for pod in facts.live_pods():
        if pod["status"].get("phase") != "Pending":
            continue
        message = next(iter(facts.events("Pod", pod, "FailedCreatePodSandBox")), "")
        node = pod["spec"].get("nodeName", "")
        if match := re.search(r"no runtime for \"([^\"]+)\" is configured|[Ff]ailed to find runtime handler (\S+)", message):
            handler = match[1] or match[2]
            name = pod["spec"].get("runtimeClassName", handler)
            yield Finding(
                cause="runtime-handler-missing",
                subject=f"RuntimeClass/{name}",
                got=f"handler {handler}, which the container runtime of node {node} does not have",
                want="one that it has",
                do=f"configure {handler} on {node} (nvidia-ctk runtime configure, then a restart), or correct modelfleet:gpu.handler",
                about=_pod(pod),
            )
        elif message and not pod["status"].get("containerStatuses", [{}])[0].get("containerID"):
            yield Finding(
                cause="sandbox",
                subject=facts.workload(pod),
                got=one_line(message),
                want=f"a pod sandbox on node {node}",
                do=f"look at the container runtime of {node}",
                about=_pod(pod),
            )


def volumes(facts: Facts) -> Iterator[Finding]:
    """Pods that mount a Secret or ConfigMap that does not exist, or a volume that cannot be attached or mounted."""
    for pod in facts.live_pods():
        if pod["status"].get("phase") != "Pending" or not pod["spec"].get("nodeName"):
            continue
        for kind, name, optional in _references(pod):
            if not optional and facts.find(kind, name) is None:
                yield _reference(facts, pod, kind, name, "none")
        message = next(iter(facts.events("Pod", pod, "FailedMount")), next(iter(facts.events("Pod", pod, "FailedAttachVolume")), ""))
        if match := re.search(r"references non-existent (secret|config) key: (\S+)", message):
            kind = "Secret" if match[1] == "secret" else "ConfigMap"
            name = next((found for each, found, _ in _references(pod) if each == kind), "")
            yield _reference(facts, pod, kind, name, f"no key {match[2]}")
        elif message and not re.search(r"(secret|configmap) \"[^\"]+\" not found|timed out waiting", message):
            yield Finding(
                cause="mount",
                subject=facts.workload(pod),
                got=one_line(message),
                want="its volumes mounted",
                do=f"look at the storage driver on node {pod['spec']['nodeName']}",
                about=_pod(pod),
            )


def _references(pod: Object) -> Iterator[tuple[str, str, bool]]:
    """(kind, name, optional) of Secrets and ConfigMaps that are mounted; a volume that no container mounts is never set up."""
    spec = pod["spec"]
    mounted = {mount["name"] for each in [*spec.get("initContainers", []), *spec["containers"]] for mount in each.get("volumeMounts", [])}
    for volume in spec.get("volumes", []):
        if volume["name"] not in mounted:
            continue
        for field, kind, name in (("secret", "Secret", "secretName"), ("configMap", "ConfigMap", "name")):
            if field in volume:
                yield kind, volume[field][name], bool(volume[field].get("optional"))


def _reference(facts: Facts, pod: Object, kind: str, name: str, got: str) -> Finding:
    workload = facts.workload(pod)
    do = "run make up, which makes it again" if facts.component(pod) else f"create it, or correct its name in {workload}"
    if facts.component(pod) == API_SERVER and name in _certificates(pod):
        do = "create it, or look at the Certificate api-server; with apiServer.tls.own run make up"
    cause = f"{kind.lower()}-missing" if got == "none" else f"{kind.lower()}-key-missing"
    return Finding(cause=cause, subject=f"{kind}/{name}", got=got, want=f"it for {workload}", do=do, about=_pod(pod))


def _certificates(pod: Object) -> list[str]:
    """Secrets with a certificate of the pod's, which others may have to make."""
    return [each["secret"]["secretName"] for each in pod["spec"].get("volumes", []) if each["name"] == "tls" and "secret" in each]


def images(facts: Facts) -> Iterator[Finding]:
    """Images that cannot be pulled, with the answer of the registry."""
    for container in facts.containers():
        if container.waiting.get("reason") not in _PULL:
            continue
        said = [text for text in facts.events("Pod", container.pod, "Failed") if "pull" in text]
        message = " ".join([container.waiting.get("message", ""), *said[:1]])
        image, setting = container.spec["image"], facts.image_setting(container)
        registry = re.search(r"https?://[^\s\"/?]+", message)
        where = registry[0] if registry else "its registry"
        if container.waiting["reason"] == "InvalidImageName":
            cause, got, want, do = "image-name", f"the image name {image!r}", "a valid one", f"correct {setting}"
        elif re.search(_UNREACHABLE, message):
            reason = re.search(rf"[^:\"]*(?:{_UNREACHABLE})[^\"]*", message)
            got = f"no answer from {where} for {image} ({one_line(reason[0] if reason else message, 120)})"
            cause, want = "registry-unreachable", "a registry that the node reaches"
            do = f"see that the registry runs and the node reaches it, or name another in {setting}"
        elif re.search(_DENIED, message):
            cause, (got, want, do) = "image-denied", _denied(facts, container, where)
        else:
            cause, got, want = "image-missing", f"no image {image} at {where}", "it there"
            do = f"push it, or correct {setting}"
        yield _of(container, facts, cause, got, want, do)


def _denied(facts: Facts, container: Container, where: str) -> tuple[str, str, str]:
    """Got, want and do for a pull that the registry refuses: because of the pod's credentials, or because the pod names none."""
    pod, image = container.pod, container.spec["image"]
    ours = bool(facts.component(pod))
    names = [each["name"] for each in pod["spec"].get("imagePullSecrets", [])]
    if missing := [name for name in names if facts.find("Secret", name) is None]:
        got = f"no Secret/{missing[0]}, and {where} refusing {image} without its credentials"
        return got, "it there", "run make up, which makes it again" if ours else "create it, of type kubernetes.io/dockerconfigjson"
    if names:
        got = f"{where} refusing the credentials of Secret/{names[0]} for {image}"
        do = "correct modelfleet:registryAuth and run make up" if ours else f"correct Secret/{names[0]}"
        return got, "credentials that may pull it", do
    do = "set modelfleet:registryAuth" if ours else "give the pod an imagePullSecret for that registry"
    return f"{where} refusing {image} without credentials", "some that may pull it", do


def _of(container: Container, facts: Facts, cause: str, got: str, want: str, do: str, covers: frozenset[str] = frozenset()) -> Finding:
    return Finding(cause=cause, subject=facts.workload(container.pod), got=got, want=want, do=do, about=_pod(container.pod), covers=covers)


def configuration(facts: Facts) -> Iterator[Finding]:
    """Containers that cannot be made or started as they are written."""
    for container in facts.containers():
        reason, message = container.waiting.get("reason"), container.waiting.get("message", "")
        if reason in ("CreateContainerConfigError", "CreateContainerError"):
            if match := re.search(r"(secret|configmap) \"([^\"]+)\" not found", message):
                yield _reference(facts, container.pod, {"secret": "Secret", "configmap": "ConfigMap"}[match[1]], match[2], "none")
            elif match := re.search(r"couldn't find key (\S+) in (Secret|ConfigMap) [^/]+/(\S+)", message):
                yield _reference(facts, container.pod, match[2], match[3], f"no key {match[1]}")
            else:
                yield _of(container, facts, "container-config", one_line(message), "one that can be made", "correct its pod template")
        elif container.ended.get("reason") in ("StartError", "ContainerCannotRun"):
            yield _of(
                container,
                facts,
                "command-missing",
                one_line(container.ended.get("message", "")),
                "a command that is in the image",
                f"correct the command, or {facts.image_setting(container)}",
            )


def ended(facts: Facts) -> Iterator[Finding]:
    """Containers that were killed for memory or by their liveness probe, and pods that were evicted."""
    for container in facts.containers():
        name, pod = container.name, container.pod
        if container.ended.get("reason") == "OOMKilled":
            limit = container.spec.get("resources", {}).get("limits", {}).get("memory", "none")
            setting = facts.setting(pod, "resources.memory")
            got = f"container {name} killed for memory at its limit of {limit}"
            yield _of(container, facts, "oom", got, "a limit that it stays below", f"raise {setting}")
            continue
        killed = [text for text in facts.events("Pod", pod, "Killing") if re.search(rf"{name} failed (liveness|startup) probe", text)]
        if killed and container.restarts:
            probe = "startup" if "startup probe" in killed[0] else "liveness"
            said = [text for text in facts.events("Pod", pod, "Unhealthy") if text.lower().startswith(probe)]
            words = one_line(said[0], 160) if said else "no message"
            got = f"container {name} killed {container.restarts} times by its {probe} probe ({words})"
            do = f"see what it does, kubectl logs {pod['metadata']['name']} -c {name} --previous, or give the probe more time"
            yield _of(container, facts, probe, got, f"answers to its {probe} probe", do)
    for pod in facts.live_pods():
        if pod["status"].get("phase") == "Failed" and pod["status"].get("reason"):
            got = one_line(f"{pod['status']['reason']}: {pod['status'].get('message', '')}")
            do = f"free what it names on node {pod['spec'].get('nodeName')}, then kubectl delete pod {pod['metadata']['name']}"
            yield Finding(cause="pod-failed", subject=facts.workload(pod), got=got, want="it running", do=do, about=_pod(pod))


def models(facts: Facts) -> Iterator[Finding]:
    """Servers whose model is not in the store."""
    for container in facts.containers():
        unhealthy = " ".join(facts.events("Pod", container.pod, "Unhealthy")[:1])
        lines = [line for line in f"{facts.log(container)}\n{unhealthy}".splitlines() if re.search(_NO_MODEL, line)]
        if lines:
            got = one_line(lines[-1].removeprefix("error: ").replace("; ", ", "), 200)
            setting = "modelfleet:fleet.models" if facts.component(container.pod) == OLLAMA else facts.setting(container.pod, "model")
            do = f"add the model to the image modelfleet:images.refs.models and run make up, or correct {setting}"
            yield _of(container, facts, "model-missing", f"({got})", "the model in its store", do)


def sources(facts: Facts) -> Iterator[Finding]:
    """Sources of models that refuse the writer. The message is the writer's own."""
    for container in facts.containers():
        if facts.component(container.pod) != MODEL_WRITER:
            continue
        match = re.search(r"^error: models\.(\S+)\.source: got (.+), want (.+?); (.+)$", facts.log(container), re.MULTILINE)
        if match:
            yield _of(container, facts, "source-refused", f"{match[2]} for model {match[1]}", match[3], f"{match[4]}, and run make up")


def crashes(facts: Facts) -> Iterator[Finding]:
    """Containers that exit by themselves, with their exit code and their last words."""
    for container in facts.containers():
        code = container.ended.get("exitCode")
        if not code:
            continue
        line = facts.last_words(container)
        words = f": {one_line(line)}" if line else ""
        pod = container.pod["metadata"]["name"]
        got = f"container {container.name} ending with exit code {code}{_SIGNALS.get(code, '')}{words}"
        do = f"mend what it says: kubectl logs {pod} -c {container.name}" + (" --previous" if container.restarts else "")
        if "exec format error" in (line or ""):
            do = "set modelfleet:images.platform to that of the images, which keeps pods off nodes of another architecture"
        yield Finding(
            cause="crash",
            subject=facts.workload(container.pod),
            got=got,
            want="it running",
            do=do,
            about=_pod(container.pod) | {f"soft:store:{facts.component(container.pod)}"},
        )


def jobs(facts: Facts) -> Iterator[Finding]:
    """Jobs that failed."""
    for job in facts.all("Job"):
        failed = [each for each in job["status"].get("conditions", []) if each["type"] == "Failed" and each["status"] == "True"]
        if failed:
            writer = job["metadata"].get("labels", {}).get("app.kubernetes.io/name") == MODEL_WRITER
            again = "run make up, which makes another" if writer else "make it anew"
            got = one_line(f"{failed[0].get('reason')}: {failed[0].get('message', '')}")
            do = f"see kubectl describe {key(job, 'Job')}, mend it, and {again}"
            about = frozenset({key(job, "Job")})
            yield Finding(cause="job-failed", subject=key(job, "Job"), got=got, want="it complete", do=do, about=about)


def replicas(facts: Facts) -> Iterator[Finding]:
    """Ollama servers that are not ready, with the reason that a sidecar logged: the agent, or the follower that copies the models."""
    for container in facts.containers():
        reason = _held_back(facts, container) if facts.component(container.pod) == OLLAMA and not container.ready else ""
        if not reason:
            continue
        match = re.fullmatch(r"(.+): got (.+), want (.+?); (.+)", reason)
        pod = container.pod["metadata"]["name"]
        logs = f"kubectl logs {pod} -c {AGENT if container.name == OLLAMA else container.name}"
        got = f"{match[1]} with {match[2]}" if match else f"{pod} not ready ({one_line(reason, 200)})"
        want, do = (match[3], match[4]) if match else ("ready", f"wait while it goes on, or see {logs}")
        about = _pod(container.pod) | {f"soft:{OLLAMA}", f"soft:store:{OLLAMA}"}
        yield Finding(cause="replica-unready", subject=facts.workload(container.pod), got=got, want=want, do=do, about=about)


def _held_back(facts: Facts, container: Container) -> str:
    """The last reason in the log of the agent. Before the agent runs, the last one in the log of the follower. Empty without a reason."""
    if container.name in (OLLAMA, AGENT):
        found = re.findall(r" (?:unready: (.+)|ready: .*)$", facts.log_of(container.pod, AGENT), re.MULTILINE)
    else:
        found = re.findall(r"^error: (.+)$", facts.log(container), re.MULTILINE)
    return found[-1] if found else ""


def probes(facts: Facts) -> Iterator[Finding]:
    """Running containers that are not ready."""
    for container in facts.containers():
        running = container.status.get("state", {}).get("running")
        if container.ready or not running:
            continue
        said = next((text for text in facts.events("Pod", container.pod, "Unhealthy") if text.startswith(("Readiness", "Startup"))), "")
        since = facts.age_s(running.get("startedAt"))
        got = f"container {container.name} not ready for {since:.0f} s" + (f" ({one_line(said, 160)})" if said else "")
        do = f"wait while it starts, or see what it does: kubectl logs {container.pod['metadata']['name']} -c {container.name}"
        component = facts.component(container.pod)
        about = _pod(container.pod) | {f"soft:{component}", f"soft:store:{component}"}
        yield Finding(cause="readiness", subject=facts.workload(container.pod), got=got, want="ready", do=do, about=about)


def leaving(facts: Facts) -> Iterator[Finding]:
    """Pods whose deletion does not end."""
    for pod in facts.all("Pod"):
        stamp = pod["metadata"].get("deletionTimestamp")
        # deletionTimestamp is the time of the request plus the grace period.
        if stamp and facts.age_s(stamp) > _STUCK_S:
            held = ", ".join(pod["metadata"].get("finalizers", [])) or "its node"
            got = f"a deletion that has waited {facts.age_s(stamp):.0f} s for {held}"
            do = f"end what holds it, or kubectl delete pod {pod['metadata']['name']} --force"
            yield Finding(cause="pod-terminating", subject=key(pod, "Pod"), got=got, want="it gone", do=do, about=_pod(pod))
