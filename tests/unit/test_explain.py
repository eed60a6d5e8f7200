"""Rules of `explain` on snapshots recorded from the real cluster, and on states that are hard to bring about there."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from infra.analysis.explain.causes import LASTING, explain
from infra.analysis.explain.facts import Container, Facts
from infra.analysis.explain.snapshot import Snapshot
from model_sync import __main__ as model_sync
from tests.cluster.faults import FAULTS

RECORDED = sorted((Path(__file__).parent / "snapshots").glob("*.json"))
"""Written by UPDATE_SNAPSHOTS=1 python -m pytest tests/cluster/test_explain.py"""
NOW = "2026-11-24T12:00:00+00:00"
SENTENCE = r"(?:[A-Z]\w+/[a-z0-9.-]+|api-server): got .+, want .+; .+"


def metadata(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "uid": f"uid-{name}", "creationTimestamp": "2026-11-24T11:00:00Z", **fields}


def snapshot(**objects: list[dict[str, Any]]) -> Snapshot:
    namespace = {"metadata": metadata("fleet"), "status": {"phase": "Active"}}
    return Snapshot(namespace="fleet", taken=NOW, objects={"Namespace": [namespace], **objects})


def pod(name: str, component: str = "", *, status: dict[str, Any], **fields: Any) -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": component} if component else {}
    return {
        "metadata": metadata(name, labels=labels, **fields),
        "spec": {"nodeName": "n1", "containers": [{"name": "main", "image": "x@sha256:0"}]},
        "status": status,
    }


def unready(exit_code: int | None = None) -> dict[str, Any]:
    state = {"running": {"startedAt": "2026-11-24T11:59:00Z"}} if exit_code is None else {"waiting": {"reason": "CrashLoopBackOff"}}
    last = {} if exit_code is None else {"terminated": {"exitCode": exit_code, "finishedAt": "2026-11-24T11:59:30Z"}}
    status = {"name": "main", "ready": False, "restartCount": 0 if exit_code is None else 4, "state": state, "lastState": last}
    return {"phase": "Running", "containerStatuses": [status]}


def node(name: str, **conditions: str) -> dict[str, Any]:
    found = [{"type": kind, "status": status, "reason": "R", "message": "m"} for kind, status in ({"Ready": "True"} | conditions).items()]
    return {"metadata": metadata(name), "spec": {}, "status": {"conditions": found}}


def named(taken: Snapshot) -> list[tuple[str, str]]:
    findings = explain(taken)
    for finding in findings:
        assert re.fullmatch(SENTENCE, str(finding)), str(finding)
    return [(finding.cause, finding.subject) for finding in findings]


def test_faults_were_recorded() -> None:
    """All that the cluster tier injects into a namespace of its own, and its stack's own model server.

    UPDATE_SNAPSHOTS=claim-leaving .venv/bin/python -m pytest tests/cluster/test_explain.py -k every_fault
    """
    assert {path.stem for path in RECORDED} == {*FAULTS, "model-missing"}


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_a_recorded_fault_is_named_alone(path: Path) -> None:
    document = json.loads(path.read_text())
    taken = Snapshot(**document["snapshot"])
    assert named(taken) == [(wanted["cause"], wanted["subject"]) for wanted in document["wanted"]]
    assert re.search(document["wanted"][0]["says"], str(explain(taken)[0]))


def test_each_model_server_is_one_of_its_own() -> None:
    """One of two crashes: it is named with its own setting, and what waits for it is no news."""
    ready = {"phase": "Running", "containerStatuses": [{"name": "main", "ready": True, "state": {"running": {}}}]}
    broken = pod("model-server-coder-x", "model-server-coder", status=unready(1))
    pods = [pod("model-server-x", "model-server", status=ready), broken, pod("api-server-x", "api-server", status=unready())]
    taken = snapshot(Pod=pods)
    assert named(taken) == [("crash", "Pod/model-server-coder-x")]
    facts = Facts(taken)
    assert facts.servers == ["model-server", "model-server-coder"]
    assert facts.setting(broken, "resources.memory") == "modelfleet:modelServers.coder.resources.memory"
    assert facts.image_setting(Container(broken, broken["status"]["containerStatuses"][0], broken["spec"]["containers"][0])) == (
        "modelfleet:images.refs.model-server"
    )


def test_a_model_server_that_is_gone_is_missed_by_its_policy() -> None:
    policy = {
        "metadata": metadata("model-server-coder"),
        "spec": {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "model-server-coder"}}, "policyTypes": []},
    }
    taken = snapshot(NetworkPolicy=[policy])
    taken.objects["Namespace"][0]["metadata"]["labels"] = {"app.kubernetes.io/part-of": "modelfleet"}
    assert ("component-missing", "StatefulSet/model-server-coder") in named(taken)
    assert ("component-missing", "StatefulSet/model-server") not in named(taken)


def test_an_empty_namespace_has_nothing_to_say() -> None:
    assert named(snapshot()) == []


def test_a_node_explains_the_pods_that_are_on_it_and_no_others() -> None:
    on_it, elsewhere = pod("a", status=unready()), pod("b", status=unready())
    elsewhere["spec"]["nodeName"] = "n2"
    taken = snapshot(Node=[node("n1", Ready="Unknown"), node("n2")], Pod=[on_it, elsewhere])
    assert named(taken) == [("node-not-ready", "Node/n1"), ("readiness", "Pod/b")]


def test_pressure_on_a_node_is_named() -> None:
    assert named(snapshot(Node=[node("n1", MemoryPressure="True")])) == [("node-pressure", "Node/n1")]


def test_a_gpu_node_without_a_gpu_is_named() -> None:
    """Of the nodes that the pods' RuntimeClass goes to; the others need none."""
    there, bare, other = node("n1"), node("n2"), node("n3")
    for each in (there, bare):
        each["metadata"]["labels"] = {"nvidia.com/gpu.present": "true"}
    there["status"]["allocatable"] = {"nvidia.com/gpu": "1"}
    bare["status"]["allocatable"] = {"nvidia.com/gpu": "0"}
    runtime = {"metadata": metadata("nvidia"), "scheduling": {"nodeSelector": {"nvidia.com/gpu.present": "true"}}}
    server = pod("ollama-0", "ollama", status={"phase": "Running", "containerStatuses": []})
    server["spec"] |= {"runtimeClassName": "nvidia"}
    server["spec"]["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": "1"}}
    found = snapshot(Node=[there, bare, other], RuntimeClass=[runtime], Pod=[server])
    assert named(found) == [("gpu-node", "Node/n2")]
    server["spec"]["resourceClaims"] = [{"name": "gpu"}]
    assert named(found) == []


@pytest.mark.parametrize(
    ("network", "found"), [("fd00::/8", []), ("10.0.0.0/8", [("policy", "NetworkPolicy/theirs")])], ids=["theirs", "of the other family"]
)
def test_a_policy_that_knows_networks_is_read_where_pods_have_ipv6_alone(network: str, found: list[tuple[str, str]]) -> None:
    ready = {"phase": "Running", "podIP": "fd00::7", "podIPs": [{"ip": "fd00::7"}]}
    pods = [pod("model-server-x", "model-server", status=ready), pod("cache-server-x", "cache-server", status=ready)]
    spec = {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [{"ipBlock": {"cidr": network}}]}]}
    assert named(snapshot(Pod=pods, NetworkPolicy=[{"metadata": metadata("theirs"), "spec": spec}])) == found


def test_a_writer_that_failed_explains_servers_without_models() -> None:
    job = {
        "metadata": metadata("models-writer", labels={"app.kubernetes.io/name": "model-sync"}),
        "spec": {"template": {"metadata": {"labels": {"app.kubernetes.io/name": "model-sync"}}}},
        "status": {"conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}]},
    }
    servers = [pod("ollama-0", "ollama", status=unready()), pod("model-server-x", "model-server", status=unready(1))]
    gateway = pod("api-server-x", "api-server", status=unready())
    taken = snapshot(Job=[job], Pod=[*servers, gateway])
    # A crash is a cause of its own, as no one knows why it ended; being unready is not.
    assert named(taken) == [("crash", "Pod/model-server-x"), ("job-failed", "Job/models-writer")]


def test_a_crashed_upstream_explains_an_unready_gateway() -> None:
    taken = snapshot(Pod=[pod("model-server-x", "model-server", status=unready(1)), pod("api-server-x", "api-server", status=unready())])
    assert named(taken) == [("crash", "Pod/model-server-x")]


def replica(said: str, name: str = "ollama", **statuses: str) -> Snapshot:
    found = pod("ollama-0", "ollama", status=unready(), ownerReferences=[{"kind": "StatefulSet", "name": "ollama", "controller": True}])
    found["spec"]["containers"][0]["name"] = found["status"]["containerStatuses"][0]["name"] = name
    objects = snapshot(Pod=[found]).objects
    return Snapshot(namespace="fleet", taken=NOW, objects=objects, logs={f"ollama-0/{statuses.get('log', 'ollama-agent')}": said})


@pytest.mark.parametrize(
    ("reason", "sentence"),
    [
        (
            "models.a:1: got no such model in the store, want it; wait for the writer, or look at its log",
            "got models.a:1 with no such model in the store, want it; wait for the writer, or look at its log",
        ),
        (
            "models.a:1: loading",
            "got ollama-0 not ready (models.a:1: loading), want ready; wait while it goes on, or see kubectl logs ollama-0 -c ollama-agent",
        ),
        ("draining", "got ollama-0 not ready (draining), want ready; wait while it goes on, or see kubectl logs ollama-0 -c ollama-agent"),
    ],
)
def test_a_replica_is_unready_by_the_last_word_of_its_agent(reason: str, sentence: str) -> None:
    log = f"x INFO catalog: a:1\nx INFO unready: ollama does not answer\nx INFO unready: {reason}\nx WARNING a:1: evicted\n"
    taken = replica(log)
    assert named(taken) == [("replica-unready", "StatefulSet/ollama")]
    assert str(explain(taken)[0]) == f"StatefulSet/ollama: {sentence}"


@pytest.mark.parametrize("log", ["", "x INFO unready: draining\nx INFO ready: a:1 (4096 tokens)\n"])
def test_a_replica_whose_agent_has_no_reason_is_unready_by_its_probe(log: str) -> None:
    assert named(replica(log)) == [("readiness", "StatefulSet/ollama")]


def test_a_replica_that_waits_for_its_models_is_unready_by_the_word_of_its_follower() -> None:
    said = "error: a:1: /models: got 5 bytes free, want 9 for a:1; enlarge storage.hot.size\n"
    taken = replica(said, "model-sync", log="model-sync")
    assert named(taken) == [("replica-unready", "StatefulSet/ollama")]
    assert "got a:1: /models with 5 bytes free, want 9 for a:1; enlarge storage.hot.size" in str(explain(taken)[0])


@pytest.mark.parametrize(
    ("volume", "do"), [("tls", "create it, or look at the Certificate api-server"), ("keys", "run make up, which makes it")]
)
def test_a_certificate_that_is_not_there_is_not_for_make_up_to_make(volume: str, do: str) -> None:
    waits = {
        "phase": "Pending",
        "containerStatuses": [{"name": "main", "ready": False, "state": {"waiting": {"reason": "ContainerCreating"}}}],
    }
    server = pod("api-server-1", "api-server", status=waits)
    server["spec"]["volumes"] = [{"name": volume, "secret": {"secretName": "team"}}]
    server["spec"]["containers"][0]["volumeMounts"] = [{"name": volume, "mountPath": "/a"}]
    taken = snapshot(Node=[node("n1")], Pod=[server])
    assert named(taken) == [("secret-missing", "Secret/team")]
    assert do in str(explain(taken)[0])


def test_an_image_of_another_architecture_is_told_from_other_ends() -> None:
    taken = snapshot(Pod=[pod("a", status=unready(exit_code=255))])
    taken = Snapshot(namespace="fleet", taken=NOW, objects=taken.objects, logs={"a/main": "exec /usr/bin/ollama: exec format error"})
    (finding,) = (each for each in explain(taken) if each.cause == "crash")
    assert "exec format error, want it running; set modelfleet:images.platform to that of the images, which keeps pods off nodes of" in str(
        finding
    )


def test_last_words_come_before_the_log() -> None:
    """The log of the next try may be of another error, or of none yet."""
    crashed = pod("model-server-x", "model-server", status=unready(1))
    (status,) = crashed["status"]["containerStatuses"]
    said = "engine: got exit status 1 while loading, want a loaded model; it said: CUDA error: out of memory"
    status["lastState"]["terminated"]["message"] = f"loading\n{said}\n"
    taken = Snapshot(namespace="fleet", taken=NOW, objects=snapshot(Pod=[crashed]).objects, logs={"model-server-x/main": "ERROR another"})
    (finding,) = explain(taken)
    assert f"ending with exit code 1: {said}, want it running; mend what it says" in str(finding)


def test_a_copier_that_failed_is_named_in_its_own_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are those of the real one, whose shared store has nothing."""
    shared, own = tmp_path / "shared", tmp_path / "own"
    shared.mkdir()
    own.mkdir()
    assert model_sync.main(["copy", str(shared), str(own), "a:1"]) == 1
    ended = {"exitCode": 1, "finishedAt": "2026-11-24T11:59:30Z", "message": capsys.readouterr().err}
    waits = {"name": "main", "ready": False, "restartCount": 0, "state": {"waiting": {"reason": "PodInitializing"}}}
    server = pod("model-server-0", "model-server", status={"phase": "Pending", "containerStatuses": [waits]})
    server["spec"]["initContainers"] = [{"name": "model-sync", "image": "x@sha256:0"}]
    copier = {"name": "model-sync", "ready": False, "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}
    server["status"]["initContainerStatuses"] = [copier | {"lastState": {"terminated": ended}}]
    taken = snapshot(Pod=[server])
    assert named(taken) == [("copy-failed", "Pod/model-server-0")]
    assert "catalog.json with none, want one; wait for the writer, or run it" in str(explain(taken)[0])
    # One that could say nothing.
    ended |= {"exitCode": 137, "message": ""}
    assert named(taken) == [("crash", "Pod/model-server-0")]


@pytest.mark.parametrize(
    ("activator", "asleep"),
    [
        (None, []),
        ([], ["ollama"]),
        ([{"name": "ACTIVATOR_SCALES", "value": '{"ollama": {"most": 1}}'}], ["ollama"]),
        ([{"name": "ACTIVATOR_SCALES", "value": '{"model-server": {"most": 1}}'}], ["model-server"]),
    ],
    ids=["without an activator", "of before there were others", "of the fleet", "of a model server"],
)
def test_servers_at_zero_are_well_where_the_activator_scales_them(activator: list[dict[str, str]] | None, asleep: list[str]) -> None:
    def at_zero(name: str) -> dict[str, Any]:
        template = {"metadata": {"labels": {"app.kubernetes.io/name": name}}}
        return {"metadata": metadata(name), "spec": {"replicas": 0, "template": template}, "status": {}}

    def service(name: str) -> dict[str, Any]:
        return {"metadata": metadata(name), "spec": {"selector": {"app.kubernetes.io/name": name}}}

    names = ("ollama", "model-server")
    spec = {"template": {"metadata": {}, "spec": {"containers": [{"name": "activator", "env": activator}]}}}
    deployed = [] if activator is None else [{"metadata": metadata("activator"), "spec": spec}]
    taken = snapshot(StatefulSet=[at_zero(name) for name in names], Service=[service(name) for name in names], Deployment=deployed)
    assert named(taken) == [("scaled-to-zero", f"StatefulSet/{name}") for name in names if name not in asleep]


def test_the_image_of_a_server_of_vllm_is_its_own() -> None:
    server = pod("model-server-chat-x", "model-server-chat", status=unready())
    server["spec"]["containers"][0]["env"] = [{"name": "MODEL_SERVER_ENGINE", "value": "vllm"}]
    container = Container(server, server["status"]["containerStatuses"][0], server["spec"]["containers"][0])
    assert Facts(snapshot(Pod=[server])).image_setting(container) == "modelfleet:images.refs.model-server-vllm"


def test_two_replicas_with_one_cause_are_one_finding() -> None:
    owner = [{"kind": "StatefulSet", "name": "ollama", "controller": True}]
    taken = snapshot(Pod=[pod(f"ollama-{number}", "ollama", status=unready(3), ownerReferences=owner) for number in range(2)])
    assert named(taken) == [("crash", "StatefulSet/ollama")]


def test_an_evicted_pod_is_named_with_its_nodes_reason() -> None:
    status = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}
    taken = snapshot(Pod=[pod("a", status=status)])
    assert named(taken) == [("pod-failed", "Pod/a")]
    assert "low on resource: memory" in str(explain(taken)[0])


def test_a_pod_that_cannot_leave_is_named_after_its_grace() -> None:
    status = {"phase": "Running"}
    leaving = {"deletionTimestamp": "2026-11-24T11:50:00Z", "finalizers": ["x/y"]}
    assert named(snapshot(Pod=[pod("a", status=status, **leaving)])) == [("pod-terminating", "Pod/a")]
    assert named(snapshot(Pod=[pod("a", status=status, **leaving | {"deletionTimestamp": "2026-11-24T12:00:30Z"})])) == []


def test_a_lost_claim_is_named() -> None:
    claim = {"metadata": metadata("c"), "spec": {"storageClassName": "s", "volumeName": "v"}, "status": {"phase": "Lost"}}
    storage_class = {"metadata": metadata("s"), "provisioner": "p"}
    assert named(snapshot(PersistentVolumeClaim=[claim], StorageClass=[storage_class])) == [("claim-lost", "PersistentVolumeClaim/c")]


@pytest.mark.parametrize(
    ("finalizers", "used_by", "cause"),
    [
        (["kubernetes.io/pvc-protection"], {}, "claim-leaving"),
        (["kubernetes.io/pvc-protection"], {"deletionTimestamp": "2026-11-24T12:05:00Z"}, "claim-ending"),
        (["kubernetes.io/pvc-protection"], None, "claim-ending"),
        (["kubernetes.io/pvc-protection", "backup.example/keep"], None, "claim-leaving"),
    ],
)
def test_a_claim_that_goes_by_itself_is_no_lasting_cause(finalizers: list[str], used_by: dict[str, Any] | None, cause: str) -> None:
    """A StatefulSet that is replaced takes its claims with it: pods first, then the claims, a moment later."""
    claim = {
        "metadata": metadata("c", deletionTimestamp="2026-11-24T11:59:50Z", finalizers=finalizers),
        "spec": {"storageClassName": "fast"},
        "status": {"phase": "Bound"},
    }
    users = []
    if used_by is not None:
        users = [pod("a", status={"phase": "Running"}, **used_by)]
        users[0]["spec"]["volumes"] = [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]
    found = named(snapshot(PersistentVolumeClaim=[claim], Pod=users))
    assert (cause, "PersistentVolumeClaim/c") in found
    assert (cause in LASTING) == (cause == "claim-leaving")


def test_a_young_claim_is_no_finding_yet() -> None:
    claim = {"metadata": metadata("c", creationTimestamp=NOW), "spec": {"storageClassName": "s"}, "status": {"phase": "Pending"}}
    storage_class = {"metadata": metadata("s"), "provisioner": "p"}
    assert named(snapshot(PersistentVolumeClaim=[claim], StorageClass=[storage_class])) == []


def test_gpus_that_are_all_taken_are_told_from_none_at_all() -> None:
    message = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu. no new claims to deallocate, preemption: none."
    waiting = pod("a", status={"conditions": [{"type": "PodScheduled", "status": "False", "message": message}]})
    busy = node("n1")
    busy["status"]["allocatable"] = {"nvidia.com/gpu": "2"}
    assert named(snapshot(Node=[busy], Pod=[waiting])) == [("gpus-taken", "Pod/a")]


@pytest.mark.parametrize(
    ("resource", "do"),
    [
        ("nvidia.com/gpu", "install the GPU operator or device plugin"),
        ("nvidia.com/gpu.shared", "rollout restart daemonset/nvidia-device-plugin-daemonset"),
        ("nvidia.com/mig-1g.10gb", "rollout restart daemonset/nvidia-device-plugin-daemonset"),
    ],
)
def test_shares_that_no_node_has_are_made_by_a_plugin_that_reads_its_configuration_anew(resource: str, do: str) -> None:
    message = f"0/1 nodes are available: 1 Insufficient {resource}. no new claims to deallocate, preemption: none."
    waiting = pod("a", status={"conditions": [{"type": "PodScheduled", "status": "False", "message": message}]})
    whole = node("n1")
    whole["status"]["allocatable"] = {} if resource == "nvidia.com/gpu" else {"nvidia.com/gpu": "2"}
    (finding,) = explain(snapshot(Node=[whole], Pod=[waiting]))
    assert finding.cause == "no-gpu"
    assert do in str(finding)


def test_many_nodes_are_not_all_named() -> None:
    many = [node(f"n{number}") for number in range(300)]
    for each in many:
        each["status"]["allocatable"] = {"nvidia.com/gpu": "8"}
    message = "0/300 nodes are available: 300 Insufficient nvidia.com/gpu."
    pending = {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": message}]}
    [finding] = explain(snapshot(Node=many, Pod=[pod("a", status=pending)]))
    assert "n0: 8, n1: 8, n2: 8, n3: 8, n4: 8, n5: 8, n6: 8, n7: 8 and 292 more" in str(finding)


def test_a_refused_pull_is_told_from_a_missing_image() -> None:
    waiting = {"reason": "ImagePullBackOff", "message": "failed to authorize: 401 Unauthorized"}
    status = {"phase": "Pending", "containerStatuses": [{"name": "main", "ready": False, "state": {"waiting": waiting}}]}
    assert named(snapshot(Pod=[pod("a", status=status)])) == [("image-denied", "Pod/a")]


REFUSED = "got its registry refusing the credentials of Secret/auth for x@sha256:0, want credentials that may pull it; correct"
ABSENT = "got no Secret/auth, and its registry refusing x@sha256:0 without its credentials, want it there;"
WITHOUT = "got its registry refusing x@sha256:0 without credentials, want some that may pull it;"


@pytest.mark.parametrize(
    ("secret", "component", "sentence"),
    [
        (True, "api-server", f"{REFUSED} modelfleet:registryAuth and run make up"),
        (True, "", f"{REFUSED} Secret/auth"),
        (False, "api-server", f"{ABSENT} run make up"),
        (False, "", f"{ABSENT} create it"),
        (None, "api-server", f"{WITHOUT} set modelfleet:registryAuth"),
        (None, "", f"{WITHOUT} give the pod an imagePullSecret"),
    ],
)
def test_a_refused_pull_says_whose_credentials_were_refused(secret: bool | None, component: str, sentence: str) -> None:
    waiting = {"reason": "ErrImagePull", "message": "unexpected status: 401 Unauthorized"}
    status = {"phase": "Pending", "containerStatuses": [{"name": "main", "ready": False, "state": {"waiting": waiting}}]}
    refused = pod("a", component, status=status)
    if secret is not None:
        refused["spec"]["imagePullSecrets"] = [{"name": "auth"}]
    taken = snapshot(Pod=[refused], Secret=[{"metadata": metadata("auth")}] if secret else [])
    (finding,) = (each for each in explain(taken) if each.cause == "image-denied")
    assert sentence in str(finding)


def test_a_model_that_a_ready_replica_does_without_is_named() -> None:
    line = "models.b:1: got /api/generate: 500 unknown model architecture: 'x', want it loaded; look at the log of container ollama"
    log = f"10:00 WARNING problems: none\n10:01 WARNING problems: {line} | models.c:1: got x, want y; do z\n10:02 INFO ready: a:1\n"
    taken = replica(log)
    ready = [{**each, "ready": True} for each in taken.objects["Pod"][0]["status"]["containerStatuses"]]
    taken.objects["Pod"][0]["status"]["containerStatuses"] = ready
    (finding,) = explain(taken)
    assert (finding.cause, finding.subject) == ("model-problem", "StatefulSet/ollama")
    assert str(finding) == (
        "StatefulSet/ollama: got models.b:1 on ollama-0 with /api/generate: 500 unknown model architecture: 'x', and 1 more of its models, "
        "want it loaded; look at the log of container ollama"
    )
    over = Snapshot(
        namespace="fleet", taken=NOW, objects=taken.objects, logs={"ollama-0/ollama-agent": f"{log}10:03 WARNING problems: none"}
    )
    assert explain(over) == []


@pytest.mark.parametrize(("status", "cause"), [(401, "wrong-key"), (503, "no-answer"), (0, "no-answer")])
def test_the_api_servers_answer_is_read(status: int, cause: str) -> None:
    taken = snapshot()
    assert named(Snapshot(namespace="fleet", taken=NOW, objects=taken.objects, answer=status)) == [(cause, "api-server")]
    assert named(Snapshot(namespace="fleet", taken=NOW, objects=taken.objects, answer=200)) == []


def test_every_lasting_cause_is_one_that_a_rule_names() -> None:
    rules = "".join(
        path.read_text() for path in (Path(__file__).parents[2] / "infra" / "analysis" / "explain").glob("*.py") if path.name != "causes.py"
    )
    assert [cause for cause in LASTING if f'"{cause}"' not in rules] == []


def claim(name: str, **fields: Any) -> dict[str, Any]:
    return {"metadata": metadata(name, deletionTimestamp="2026-11-24T11:59:00Z"), "spec": {}, "status": {"phase": "Bound"}, **fields}


def test_a_claim_that_is_marked_for_deletion_is_named_with_what_holds_it() -> None:
    held = claim("shared-models")
    held["metadata"]["finalizers"] = ["kubernetes.io/pvc-protection"]
    user = pod("ollama-0", "ollama", status={"phase": "Running", "containerStatuses": []})
    user["spec"]["volumes"] = [{"name": "v", "persistentVolumeClaim": {"claimName": "shared-models"}}]
    (used,) = explain(snapshot(PersistentVolumeClaim=[held], Pod=[user]))
    assert str(used).startswith("PersistentVolumeClaim/shared-models: got a mark for deletion, which waits for pods ollama-0, want a claim")
    (unused,) = explain(snapshot(PersistentVolumeClaim=[held]))
    assert "got a deletion that is about to end" in str(unused)


@pytest.mark.parametrize(("protocol", "found"), [("UDP", []), ("TCP", [("policy", "NetworkPolicy/metrics-exporter")])])
def test_names_may_be_looked_up_anywhere_but_somewhere(protocol: str, found: list[tuple[str, str]]) -> None:
    """OpenShift has its DNS in a namespace and on a port of its own."""
    to = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "openshift-dns"}}}]
    spec = {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": to, "ports": [{"port": 5353, "protocol": protocol}]}]}
    exporter = pod("exporter", "metrics-exporter", status={"phase": "Running"})
    assert named(snapshot(Pod=[exporter], NetworkPolicy=[{"metadata": metadata("metrics-exporter"), "spec": spec}])) == found
