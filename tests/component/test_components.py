"""Each component alone: what it registers, and the defect of the original design that it does not have."""

import base64
import dataclasses
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, Literal

import pulumi
import pytest
import yaml

import components as c
from api_server.keys import Keys
from components.contract import ACTIVATOR, AGENT_CONTROL_PORT, AGENT_PORT, COMPONENTS, CONTEXT_PROBE, DNS_CLIENTS, EDGES, PORTS
from components.images import content_tag
from infra.analysis.policy import rules
from infra.program.settings.constraints import EPHEMERAL_DEFAULT
from infra.program.settings.section import quantity
from tests.component.harness import Recorder, render

ROOT = Path(__file__).resolve().parents[2]
SMALL = c.ResourceArgs(cpu="100m", memory="128Mi")
TIER = c.TierArgs(provisioner="example.org/disk", size="1Gi")


def governance(**changes: Any) -> Recorder:
    args = c.GovernanceArgs(namespace="ns", gpu_quota=8, gpu_resource="nvidia.com/gpu", cpu="4", memory="8Gi", pods=50, retain=False)
    return render(lambda: c.Governance("g", dataclasses.replace(args, **changes)))


def test_the_quota_counts_requests_of_gpus_and_no_limits() -> None:
    hard = governance().one("ResourceQuota")["spec"]["hard"]
    assert hard["requests.nvidia.com/gpu"] == "8"
    assert not [key for key in hard if key.startswith("limits.")]


def test_no_container_gets_a_gpu_by_default() -> None:
    item = governance().one("LimitRange")["spec"]["limits"][0]
    assert set(item["defaultRequest"]) == {"cpu", "memory", "ephemeral-storage"}
    assert quantity(item["defaultRequest"]["ephemeral-storage"]) == EPHEMERAL_DEFAULT
    assert set(item["default"]) == {"memory", "ephemeral-storage"}
    assert "max" not in item


def test_a_gpu_maximum_comes_with_a_default_of_none() -> None:
    # Kubernetes takes a maximum for the default of every container that names none.
    item = governance(gpus_per_container=2).one("LimitRange")["spec"]["limits"][0]
    assert item["max"] == {"nvidia.com/gpu": "2"}
    assert (item["default"]["nvidia.com/gpu"], item["defaultRequest"]["nvidia.com/gpu"]) == ("0", "0")


def test_the_quota_counts_disk_claims_and_load_balancers_too() -> None:
    hard = governance(storage="1Ti", claims=5, ephemeral_storage="8Gi").one("ResourceQuota")["spec"]["hard"]
    assert (hard["requests.storage"], hard["persistentvolumeclaims"], hard["requests.ephemeral-storage"]) == ("1Ti", "5", "8Gi")
    assert hard["services.loadbalancers"] == "0"


def test_batch_work_cannot_use_up_the_gpus_of_serving() -> None:
    quotas = governance(gpus_per_container=1, gpu_reserved=3).kind("ResourceQuota")
    scoped = next(quota["spec"] for quota in quotas if "scopeSelector" in quota["spec"])
    assert scoped["hard"] == {"requests.nvidia.com/gpu": "5"}
    assert scoped["scopeSelector"]["matchExpressions"] == [
        {"scopeName": "PriorityClass", "operator": "In", "values": ["gpu-batch-priority"]}
    ]


def test_claimed_devices_are_counted_by_their_class() -> None:
    recorder = governance(gpu_device_class="mig.nvidia.com", gpu_resource="nvidia.com/mig-1g.10gb", gpus_per_container=1)
    hard = recorder.one("ResourceQuota")["spec"]["hard"]
    assert hard["mig.nvidia.com.deviceclass.resource.k8s.io/devices"] == "8"
    assert hard["requests.nvidia.com/mig-1g.10gb"] == "0"
    assert "max" not in recorder.one("LimitRange")["spec"]["limits"][0]


def test_the_namespace_enforces_the_restricted_standard() -> None:
    assert governance().one("Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


SHARES = {
    "renameByDefault": True,
    "failRequestsGreaterThanOne": True,
    "resources": [{"name": "nvidia.com/gpu", "replicas": 4}],
}


def gpu(**changes: Any) -> Recorder:
    args = c.GpuRuntimeArgs(enabled=True, create_runtime_class=True, runtime_class="nvidia", handler="nvidia", priority=1_000_000)
    return render(lambda: c.GpuRuntime("gpu", dataclasses.replace(args, **changes)))


def test_the_runtime_class_selects_the_label_that_gpu_nodes_have() -> None:
    runtime_class = gpu().one("RuntimeClass")
    assert runtime_class["handler"] == "nvidia"
    assert runtime_class["scheduling"]["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert runtime_class["scheduling"]["tolerations"][0]["key"] == "nvidia.com/gpu"


@pytest.mark.parametrize("changes", [{"enabled": False}, {"create_runtime_class": False}])
def test_defect_26_no_runtime_class_where_there_is_no_gpu_or_the_operator_owns_it(changes: dict[str, bool]) -> None:
    recorder = gpu(**changes)
    assert recorder.kind("RuntimeClass") == []
    assert len(recorder.kind("PriorityClass")) == 3


def test_the_runtime_class_says_what_its_pods_cost_beside_their_containers() -> None:
    assert gpu(overhead={"cpu": "5m", "memory": "32Mi"}).one("RuntimeClass")["overhead"] == {"podFixed": {"cpu": "5m", "memory": "32Mi"}}


def test_the_gateway_comes_before_serving_and_batch_work_evicts_nothing() -> None:
    classes = {item["metadata"]["name"]: item for item in gpu().kind("PriorityClass")}
    assert [name for name, _ in sorted(classes.items(), key=lambda each: -each[1]["value"])] == [
        "gateway-priority",
        "gpu-priority",
        "gpu-batch-priority",
    ]
    assert classes["gpu-priority"]["value"] == 1_000_000
    # Unset is PreemptLowerPriority.
    policies = {name: item.get("preemptionPolicy") for name, item in classes.items()}
    assert policies == {"gateway-priority": None, "gpu-priority": None, "gpu-batch-priority": "Never"}
    assert not any(item["globalDefault"] for item in classes.values())


@pytest.mark.parametrize(
    ("strategy", "replicas", "sharing"),
    [
        ("time-slicing", 4, {"timeSlicing": SHARES}),
        ("mps", 4, {"mps": SHARES}),
        ("mig", None, None),
    ],
)
def test_the_device_plugin_is_told_how_gpus_are_shared(strategy: Any, replicas: int | None, sharing: dict[str, Any] | None) -> None:
    config = gpu(sharing=c.SharingArgs(strategy=strategy, replicas=replicas, operator_namespace="gpu-operator")).one("ConfigMap")
    assert config["metadata"]["namespace"] == "gpu-operator"
    (text,) = config["data"].values()
    told = yaml.safe_load(text)
    assert told["version"] == "v1"
    assert told.get("sharing") == sharing
    assert told["flags"] == {"migStrategy": "mixed" if strategy == "mig" else "none"}


@pytest.mark.parametrize(
    ("profile", "device_class", "selectors"),
    [
        (None, "gpu.nvidia.com", None),
        ("1g.10gb", "mig.nvidia.com", [{"cel": {"expression": "device.attributes['gpu.nvidia.com'].profile == '1g.10gb'"}}]),
    ],
)
def test_a_claim_asks_for_exact_devices_of_one_class(profile: str | None, device_class: str, selectors: list[Any] | None) -> None:
    template = gpu(claim=c.ClaimArgs(namespace="ns", count=2, mig_profile=profile)).one("ResourceClaimTemplate")
    assert template["apiVersion"] == "resource.k8s.io/v1"
    (request,) = template["spec"]["spec"]["devices"]["requests"]
    assert (request["exactly"]["deviceClassName"], request["exactly"]["count"]) == (device_class, 2)
    assert request["exactly"].get("selectors") == selectors


def storage(*, retain: bool) -> Recorder:
    return render(lambda: c.Storage("s", c.StorageArgs(namespace="ns", hot=TIER, shared=TIER, retain=retain)))


@pytest.mark.parametrize(("retain", "policy"), [(True, "Retain"), (False, "Delete")])
def test_storage_has_two_classes_and_one_shared_claim(retain: bool, policy: str) -> None:
    recorder = storage(retain=retain)
    classes = {item["metadata"]["name"]: item for item in recorder.kind("StorageClass")}
    assert set(classes) == {"local-nvme", "shared-models"}
    assert classes["local-nvme"]["volumeBindingMode"] == "WaitForFirstConsumer"
    assert {item["reclaimPolicy"] for item in classes.values()} == {policy}
    claim = recorder.one("PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert claim["spec"]["storageClassName"] == "shared-models"


def test_a_class_that_is_there_is_used_and_not_made() -> None:
    tier = c.TierArgs(size="1Gi", class_name="fast")
    shared = c.TierArgs(provisioner="example.com/csi", size="1Gi", class_name="b-shared-models")
    recorder = render(lambda: c.Storage("storage", c.StorageArgs(namespace="ns", hot=tier, shared=shared, retain=True)))
    assert recorder.one("StorageClass")["metadata"]["name"] == "b-shared-models"
    assert recorder.one("PersistentVolumeClaim")["spec"]["storageClassName"] == "b-shared-models"


def network(**changes: Any) -> dict[str, dict[str, Any]]:
    args = c.NetworkArgs(namespace="ns", client_cidrs=["10.0.0.0/8"], prometheus_namespace="monitoring", **changes)
    recorder = render(lambda: c.Network("n", args))
    return {item["metadata"]["name"]: item["spec"] for item in recorder.kind("NetworkPolicy")}


def test_everything_is_denied_by_default() -> None:
    default = network()["default-deny"]
    assert default["podSelector"] == {}
    assert default["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in default
    assert "egress" not in default


def test_names_are_looked_up_where_the_cluster_answers_them() -> None:
    dns = c.DnsArgs(pods=c.PodsArgs(namespace="openshift-dns", labels={"dns": "default"}), port=5353, cidrs=["169.254.20.10/32"])
    rule = network(dns=dns)["api-server"]["egress"][-1]
    pods, node = rule["to"]
    assert pods["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "openshift-dns"}
    assert pods["podSelector"]["matchLabels"] == {"dns": "default"}
    assert node == {"ipBlock": {"cidr": "169.254.20.10/32"}}
    ports = {(each["protocol"], each["port"]) for each in rule["ports"]}
    assert ports == {("UDP", 53), ("TCP", 53), ("UDP", 5353), ("TCP", 5353)}


def test_pods_of_another_namespace_may_be_clients_of_the_api_server_alone() -> None:
    policies = network(client_pods=[c.PodsArgs(namespace="openhands", labels={"app": "agent"}), c.PodsArgs(namespace="ci")])
    clients = next(rule["from"] for rule in policies["api-server"]["ingress"] if "openhands" in str(rule))
    name = "kubernetes.io/metadata.name"
    assert clients == [
        {"ipBlock": {"cidr": "10.0.0.0/8"}},
        {"namespaceSelector": {"matchLabels": {name: "openhands"}}, "podSelector": {"matchLabels": {"app": "agent"}}},
        {"namespaceSelector": {"matchLabels": {name: "ci"}}},
    ]
    assert not [component for component, policy in policies.items() if component != "api-server" and "openhands" in str(policy)]


SCALED = tuple(component for component in (*COMPONENTS, ACTIVATOR) if component != CONTEXT_PROBE)


@pytest.mark.parametrize(
    ("options", "deployed"), [({}, COMPONENTS), ({"kubernetes_cidrs": ["10.0.0.1/32"], "contexts_are_probed": False}, SCALED)]
)
def test_every_component_has_a_policy_and_only_its_edges(options: dict[str, Any], deployed: tuple[str, ...]) -> None:
    policies = network(**options)
    assert set(policies) == {"default-deny", *deployed}
    edges = [edge for edge in EDGES if {edge.source, edge.target} <= set(deployed)]

    def peers(component: str, direction: str, key: str) -> set[tuple[str, int]]:
        return {
            (peer["podSelector"]["matchLabels"]["app.kubernetes.io/name"], int(port["port"]))
            for rule in policies[component].get(direction, [])
            for peer in rule[key]
            if "namespaceSelector" not in peer and "podSelector" in peer
            for port in rule["ports"]
        }

    for component in deployed:
        assert peers(component, "ingress", "from") == {(edge.source, edge.port) for edge in edges if edge.target == component}
        assert peers(component, "egress", "to") == {(edge.target, edge.port) for edge in edges if edge.source == component}


def test_every_model_server_has_a_policy_and_the_edges_of_one() -> None:
    one, two = network(prometheus=True), network(prometheus=True, model_servers=["model-server", "model-server-b"])
    assert two.keys() - one.keys() == {"model-server-b"}
    assert two["model-server"] == one["model-server"]
    other = json.loads(json.dumps(one["model-server"]).replace('"model-server"', '"model-server-b"'))
    assert two["model-server-b"] == other
    for name in ("api-server", "cache-server", "prometheus"):
        assert str(two[name]).count("'model-server-b'") == str(two[name]).count("'model-server'") == 1
    assert network(model_servers=["model-server-b"]).keys() == (network().keys() - {"model-server"}) | {"model-server-b"}


def test_dns_is_open_in_both_protocols_for_those_that_look_names_up() -> None:
    for component, spec in network().items():
        ports = {
            (rule["ports"][0]["port"], port["protocol"])
            for rule in spec.get("egress", [])
            for port in rule["ports"]
            if any("namespaceSelector" in peer for peer in rule["to"])
        }
        assert ports == ({(53, "UDP"), (53, "TCP")} if component in DNS_CLIENTS else set())


OLLAMA = c.OllamaFleetArgs(
    namespace="ns",
    image="ollama@sha256:1",
    sync_image="models@sha256:2",
    shared_claim="shared-models",
    hot_class="local-nvme",
    hot_size="100Gi",
    hot_bytes=100 * 2**30,
    replicas=3,
    resources=c.ResourceArgs(cpu="8", memory="64Gi", gpus=1),
    context_length=65536,
    num_parallel=2,
    keep_alive="-1",
    max_queue=16,
    prompt_cache_bytes=2**30,
    runtime_class="nvidia",
    priority_class="gpu-priority",
    agent=c.AgentArgs(image="agent@sha256:3", drain_s=600, min_context=16384),
    retain=True,
    models={"a:1": 3, "b:2": 3},
)


def ollama(**changes: Any) -> Recorder:
    return render(lambda: c.OllamaFleet("o", dataclasses.replace(OLLAMA, **changes)))


def test_the_fleet_uses_the_runtime_class_the_priority_and_a_whole_gpu() -> None:
    pod = ollama().one("StatefulSet")["spec"]["template"]["spec"]
    assert (pod["runtimeClassName"], pod["priorityClassName"]) == ("nvidia", "gpu-priority")
    resources = pod["containers"][0]["resources"]
    assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"] == "1"


def test_a_replica_with_claimed_gpus_names_its_claim_and_no_extended_resource() -> None:
    claimed = c.ResourceArgs(cpu="8", memory="64Gi", gpus=1, claims_gpus=True)
    pod = ollama(resources=claimed, claim_template="ollama-gpu").one("StatefulSet")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["resourceClaims"] == [{"name": "gpu", "resourceClaimTemplateName": "ollama-gpu"}]
    assert container["resources"]["claims"] == [{"name": "gpu"}]
    assert not [key for key in container["resources"]["limits"] if "nvidia" in key]
    # The runtime's own injection would add every GPU of the node to the claimed ones.
    assert {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"} in container["env"]


def test_old_prompts_stay_within_what_the_pod_can_spare() -> None:
    container = ollama().one("StatefulSet")["spec"]["template"]["spec"]["containers"][0]
    assert {"name": "LLAMA_ARG_CACHE_RAM", "value": "1024"} in container["env"]


def test_a_replica_without_a_gpu_is_shown_none() -> None:
    container = ollama(resources=SMALL, runtime_class=None).one("StatefulSet")["spec"]["template"]["spec"]["containers"][0]
    assert {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"} in container["env"]
    assert "nvidia.com/gpu" not in container["resources"]["limits"]


def test_the_fleet_is_a_parallel_stateful_set_behind_a_headless_service() -> None:
    recorder = ollama()
    spec = recorder.one("StatefulSet")["spec"]
    service = next(each for each in recorder.kind("Service") if each["metadata"]["name"] == "ollama")
    assert (spec["replicas"], spec["podManagementPolicy"], spec["serviceName"]) == (3, "Parallel", service["metadata"]["name"])
    assert service["spec"]["clusterIP"] == "None"
    assert spec["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}


def test_nothing_in_a_replica_depends_on_the_list_of_models() -> None:
    """So that adding a model restarts nobody: the follower reads the catalog. Only the context probe asks for each by its name."""
    one, two = (ollama(models=models) for models in ({"a:1": 3}, {"a:1": 3, "b:1": 1}))
    assert one.one("StatefulSet")["spec"] == two.one("StatefulSet")["spec"]
    assert one.one("Job")["spec"] != two.one("Job")["spec"]


def test_a_replica_reads_its_own_store_and_a_sidecar_alone_writes_it() -> None:
    spec = ollama().one("StatefulSet")["spec"]["template"]["spec"]
    (server,), (follower, agent) = spec["containers"], spec["initContainers"]
    modes = {
        (container["name"], mount["name"]): mount.get("readOnly", False)
        for container in (server, follower, agent)
        for mount in container["volumeMounts"]
        if mount["name"] != "tmp"
    }
    assert modes == {
        ("ollama", "models"): True,
        ("ollama-agent", "models"): True,
        ("model-sync", "shared"): True,
        ("model-sync", "models"): False,
    }
    # A native sidecar: it starts first, and its startup probe holds the server back until the first pass is over.
    assert follower["restartPolicy"] == "Always"
    marker = follower["args"][-1].removeprefix("--marker=")
    probe = f'test "$(cut -d" " -f22 /proc/1/stat)" = "$(cat {marker})"'
    assert follower["startupProbe"]["exec"]["command"] == ["sh", "-c", probe]
    assert f"--capacity={100 * 2**30}" in follower["args"]


def container(recorder: Recorder, name: str) -> dict[str, Any]:
    pod = recorder.one("StatefulSet")["spec"]["template"]["spec"]
    return next(each for each in [*pod["containers"], *pod["initContainers"]] if each["name"] == name)


def test_a_replica_is_ready_by_the_word_of_its_agent() -> None:
    recorder = ollama(resources=dataclasses.replace(OLLAMA.resources, gpus=0))
    assert container(recorder, "ollama")["readinessProbe"]["httpGet"] == {"path": "/ready", "port": 9466}
    agent = container(recorder, "ollama-agent")
    assert agent["restartPolicy"] == "Always", "a sidecar: it starts before Ollama and stops after it"
    assert agent["startupProbe"]["httpGet"]["path"] == "/health"
    assert agent["readinessProbe"]["httpGet"]["path"] == "/health"
    assert next(mount for mount in agent["volumeMounts"] if mount["name"] == "models")["readOnly"] is True


def test_a_replica_with_gpus_is_ready_by_their_word_too() -> None:
    recorder = ollama()
    probe = container(recorder, "ollama")["readinessProbe"]
    assert probe["exec"]["command"][2].startswith("said=$(nvidia-smi -L 2>&1); case $? in 9|15|255)")
    assert (probe["periodSeconds"] + probe["timeoutSeconds"]) * probe["failureThreshold"] <= 60
    assert container(recorder, "ollama-agent")["readinessProbe"]["httpGet"] == {"path": "/ready", "port": 9466}


@pytest.mark.parametrize(
    ("status", "found"), [(0, (0, "")), (14, (0, "")), (127, (0, "")), (15, (1, "GPU is lost\n")), (9, (1, "GPU is lost\n"))]
)
def test_the_probe_of_gpus_goes_by_the_exit_status_of_the_drivers_program(tmp_path: Path, status: int, found: tuple[int, str]) -> None:
    command = container(ollama(), "ollama")["readinessProbe"]["exec"]["command"]
    if status != 127:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\necho GPU is lost\nexit {status}\n")
        program.chmod(0o755)
    done = subprocess.run(["/bin/sh", *command[1:]], env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == found


def test_a_replica_drains_before_it_is_stopped_and_has_the_time_for_it() -> None:
    recorder = ollama(agent=dataclasses.replace(OLLAMA.agent, drain_s=900))
    assert container(recorder, "ollama")["lifecycle"]["preStop"]["httpGet"] == {"path": "/drain", "port": 9466}
    values = {entry["name"]: entry.get("value") for entry in container(recorder, "ollama-agent")["env"]}
    assert values["OLLAMA_AGENT_DRAIN_S"] == "900"
    assert recorder.one("StatefulSet")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > 900


def test_the_drain_is_open_to_the_kubelet_alone() -> None:
    ports = {port["port"] for spec in network().values() for rule in spec.get("ingress", []) for port in rule["ports"]}
    assert AGENT_PORT in ports
    assert AGENT_CONTROL_PORT not in ports


def test_a_gpu_replica_tolerates_gpu_nodes_and_likes_one_of_its_own() -> None:
    pod = ollama().one("StatefulSet")["spec"]["template"]["spec"]
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]
    (term,) = pod["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert term["podAffinityTerm"]["topologyKey"] == "kubernetes.io/hostname"
    assert "tolerations" not in ollama(resources=SMALL, runtime_class=None).one("StatefulSet")["spec"]["template"]["spec"]


def test_an_agent_wants_models_on_the_gpu_where_the_fleet_asks_for_gpus() -> None:
    def gpu(recorder: Recorder) -> list[str]:
        return [entry["value"] for entry in container(recorder, "ollama-agent")["env"] if entry["name"] == "OLLAMA_AGENT_GPU"]

    assert gpu(ollama()) == ["1"]
    assert gpu(ollama(resources=SMALL, runtime_class=None)) == []


def test_the_probe_asks_every_replica_of_the_new_revision_for_every_model() -> None:
    recorder = ollama()
    pod = recorder.one("Job")["spec"]["template"]["spec"]
    values = {entry["name"]: entry["value"] for entry in pod["containers"][0]["env"]}
    assert (values["OLLAMA_PROBE_REPLICAS"], values["OLLAMA_PROBE_MIN_CONTEXT"]) == ("3", "16384")
    assert values["OLLAMA_PROBE_MODELS"] == '{"a:1": 3, "b:2": 3}'
    agent = {entry["name"]: entry.get("value") for entry in container(recorder, "ollama-agent")["env"]}
    assert values["OLLAMA_PROBE_REVISION"] == agent["OLLAMA_AGENT_REVISION"]
    replicas = next(each for each in recorder.kind("Service") if each["metadata"]["name"] == values["OLLAMA_PROBE_HOST"])
    assert replicas["spec"]["publishNotReadyAddresses"] is True, "an unready replica is asked what it lacks"
    assert (pod["restartPolicy"], recorder.one("Job")["spec"]["backoffLimit"]) == ("Never", 0), "the first answer ends the deployment"


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"models": {"a:1": 3, "c:3": 1}}, True),
        ({"context_length": 32768}, False),
        ({"image": "ollama@sha256:9"}, False),
        ({"agent": c.AgentArgs(image="agent@sha256:9", drain_s=600, min_context=16384)}, False),
        ({"resources": c.ResourceArgs(cpu="8", memory="65Gi", gpus=1)}, False),
    ],
)
def test_a_revision_is_all_but_the_models(changes: dict[str, Any], same: bool) -> None:
    def revision(recorder: Recorder) -> str:
        return next(entry["value"] for entry in container(recorder, "ollama-agent")["env"] if entry["name"] == "OLLAMA_AGENT_REVISION")

    assert (revision(ollama(**changes)) == revision(ollama())) is same


def test_ollama_never_prunes_the_store_and_always_has_a_context_length() -> None:
    container = ollama().one("StatefulSet")["spec"]["template"]["spec"]["containers"][0]
    values = {entry["name"]: entry["value"] for entry in container["env"]}
    assert (values["OLLAMA_NOPRUNE"], values["OLLAMA_NO_CLOUD"], values["OLLAMA_CONTEXT_LENGTH"]) == ("1", "1", "65536")


MODELS = c.ModelStoreArgs(
    namespace="ns",
    image="models@sha256:1",
    sync_image="model-sync@sha256:1",
    claim="shared-models",
    capacity_bytes=2**30,
    models=[{"name": "a:1", "source": "image"}],
    rate_limit_bytes=1000,
    verify=True,
)


def test_the_writer_gets_the_declaration_and_the_shared_claim() -> None:
    recorder = render(lambda: c.ModelStore("m", MODELS))
    spec = recorder.one("Job")["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert container["args"] == ["publish", "/seed", "/shared", f"--capacity={2**30}", "--rate-limit=1000", "--verify"]
    assert json.loads(container["env"][0]["value"]) == {"fleet": 0, "models": [{"name": "a:1", "source": "image"}]}
    assert {"claimName": "shared-models"} in [volume.get("persistentVolumeClaim") for volume in pod["volumes"]]


def test_the_writer_alone_has_the_credentials_and_no_text_of_the_pods_shows_them() -> None:
    secret, bundle = '{"models.example.com": "hunter2"}', "-----BEGIN CERTIFICATE-----"

    def construct() -> None:
        c.ModelStore("m", dataclasses.replace(MODELS, credentials=secret, ca_bundle=bundle)).clean_after([])

    recorder = render(construct)
    writer, cleaner = (job["spec"]["template"]["spec"] for job in recorder.kind("Job"))
    (container,) = writer["containers"]
    assert container["args"][-2:] == [
        "--credentials=/etc/model-sync/credentials/credentials.json",
        "--ca-bundle=/etc/model-sync/authorities/ca.crt",
    ]
    files = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert files["/etc/model-sync/credentials"]["readOnly"] is files["/etc/model-sync/authorities"]["readOnly"] is True
    # Wrapped: so it is encrypted in the state.
    assert recorder.one("Secret")["stringData"]["value"] == {"credentials.json": secret}
    assert recorder.one("ConfigMap")["data"] == {"ca.crt": bundle}
    assert "hunter2" not in str([writer, cleaner])
    assert {volume["name"] for volume in cleaner["volumes"]} == {"tmp", "shared"}
    # Another credential is another name, so another Job asks again.
    assert "name" not in recorder.one("Secret")["metadata"]


def test_a_writer_that_gives_up_fails_the_job_at_once_and_its_reason_stays() -> None:
    """Pulumi waits on after any other reason of a failed Job than a used-up backoff limit."""
    spec = render(lambda: c.ModelStore("m", MODELS)).one("Job")["spec"]
    assert spec["backoffLimit"] == 0
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert (rule["action"], [each["type"] for each in rule["onPodConditions"]]) == ("Ignore", ["DisruptionTarget"])
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["containers"][0]["terminationMessagePolicy"] == "FallbackToLogsOnError"


def test_the_writer_may_leave_for_its_sources_alone() -> None:
    def egress(**changes: Any) -> list[dict[str, Any]]:
        args = c.NetworkArgs(namespace="ns", client_cidrs=["10.0.0.0/8"], prometheus_namespace="m", **changes)
        policies = render(lambda: c.Network("n", args)).kind("NetworkPolicy")
        return next(policy["spec"].get("egress", []) for policy in policies if policy["metadata"]["name"] == "model-sync")

    assert egress() == []
    (rule,) = egress(origins=[c.OriginArgs(cidr="192.0.2.7/32", port=5000)])
    assert rule == {"to": [{"ipBlock": {"cidr": "192.0.2.7/32"}}], "ports": [{"port": 5000, "protocol": "TCP"}]}
    assert len(egress(origins=[c.OriginArgs(cidr="192.0.2.0/24", port=443)], origins_have_names=True)) == 2
    (rule,) = egress(origins=[c.OriginArgs(cidr="2001:db8::7/128", port=5000)])
    assert rule["to"] == [{"ipBlock": {"cidr": "2001:db8::7/128"}}]


LOCAL = c.LocalCopyArgs(image="y@sha256:1", storage_class="local-nvme", size="2Gi", capacity_bytes=2**31, retain=True)


def model_server(**fields: Any) -> Recorder:
    args = c.ModelServerArgs(
        namespace="ns",
        image="x@sha256:1",
        shared_claim="shared-models",
        local=LOCAL,
        cache_secret="cache-auth",
        replicas=2,
        resources=SMALL,
        model="a:1",
        model_version="sha256:1",
        model_id="a-server",
        context_length=4096,
        parallel=2,
        max_queue=4,
        priority_class="gpu-priority",
    )
    return render(lambda: c.ModelServer("m", dataclasses.replace(args, **fields)))


def test_the_model_server_reads_its_own_copy_and_knows_the_cache() -> None:
    spec = model_server().one("StatefulSet")["spec"]
    pod = spec["template"]["spec"]
    container = pod["containers"][0]
    assert container["ports"][0]["containerPort"] == 8080
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert (mounts["models"]["mountPath"], mounts["models"]["readOnly"], "shared" in mounts) == ("/models", True, False)
    values = {entry["name"]: entry["value"] for entry in container["env"]}
    assert values["MODEL_SERVER_CACHE_URL"] == "redis://cache-server:6379/0"
    assert "sha256" not in str(values), "no secret value stands in the environment"


def test_a_model_server_starts_when_its_own_claim_has_the_model() -> None:
    spec = model_server().one("StatefulSet")["spec"]
    (claim,) = spec["volumeClaimTemplates"]
    assert (claim["spec"]["storageClassName"], claim["spec"]["resources"]["requests"]["storage"]) == ("local-nvme", "2Gi")
    (copy,) = spec["template"]["spec"]["initContainers"]
    assert copy["args"] == ["copy", "/shared", "/models", "a:1", f"--capacity={2**31}"]
    assert {mount["name"]: mount.get("readOnly") for mount in copy["volumeMounts"]} == {"tmp": None, "shared": True, "models": None}
    assert "restartPolicy" not in copy, "it ends before the server starts"
    assert spec["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    loose = model_server(local=dataclasses.replace(LOCAL, retain=False, keep=False)).one("StatefulSet")["spec"]
    assert loose["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Delete", "whenScaled": "Delete"}


def test_a_model_server_without_a_class_for_copies_reads_the_shared_store() -> None:
    spec = model_server(local=None).one("StatefulSet")["spec"]
    assert not {"volumeClaimTemplates", "persistentVolumeClaimRetentionPolicy"} & spec.keys()
    pod = spec["template"]["spec"]
    assert "initContainers" not in pod
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["models"]["persistentVolumeClaim"] == {"claimName": "shared-models", "readOnly": True}


def test_an_update_waits_for_all_replicas_but_where_a_deployment_makes_room_at_its_end() -> None:
    assert "annotations" not in model_server().one("StatefulSet")["metadata"]
    handing_over = model_server(hands_over=True).one("StatefulSet")["metadata"]["annotations"]
    assert handing_over == {"pulumi.com/waitFor": "jsonpath={.status.readyReplicas}"}


def test_the_cache_server_has_a_bound_a_policy_and_a_password_outside_its_configuration() -> None:
    args = c.CacheServerArgs(
        namespace="ns",
        image="x@sha256:1",
        password="very-secret-password",
        max_memory_bytes=2**26,
        eviction_policy="allkeys-lru",
        resources=SMALL,
    )
    recorder = render(lambda: c.CacheServer("cache", args))
    conf = recorder.one("ConfigMap")["data"]["cache.conf"]
    assert "maxmemory 67108864\nmaxmemory-policy allkeys-lru\n" in conf
    assert "very-secret-password" not in conf
    assert "very-secret-password" not in str(recorder.one("Deployment"))
    assert recorder.one("Service")["spec"]["ports"][0]["port"] == 6379


API_SERVER = c.ApiServerArgs(
    namespace="ns",
    image="x@sha256:1",
    keys=["a-very-secret-api-key"],
    routes={"a:1": {"url": "http://ollama:11434", "model": "a:1", "max_in_flight": 4}},
    replicas=2,
    resources=SMALL,
    service_type="NodePort",
    node_port=30080,
)


def test_the_api_server_mounts_its_keys_and_names_its_routes() -> None:
    recorder = render(lambda: c.ApiServer("api", API_SERVER))
    deployment = recorder.one("Deployment")
    assert "a-very-secret-api-key" not in str(deployment)
    assert {"name": "keys", "secret": {"secretName": "api-server-keys", "defaultMode": 0o440}} in deployment["spec"]["template"]["spec"][
        "volumes"
    ]
    assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert recorder.one("Service")["spec"]["ports"][0]["nodePort"] == 30080
    values = {entry["name"]: entry.get("value") for entry in deployment["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert '"url": "http://ollama:11434"' in values["API_SERVER_ROUTES"]


def test_the_api_server_gets_hashes_of_keys_that_it_can_read(tmp_path: Path) -> None:
    plain = ["a-very-secret-api-key", "another-very-secret-key", "a-very-secret-api-key"]
    mine = "the-secret-of-alice-01"
    alice = {"key": f" {mine} ", "owner": "Alice", "expires": "2027-01-31", "models": ["a:1"], "requestsPerMinute": 6, "priority": 3}
    args = dataclasses.replace(API_SERVER, keys=plain, named_keys={"alice": alice, "bob": {"key": "the-secret-of-bob-0123"}})
    secret = render(lambda: c.ApiServer("api", args)).one("Secret")
    assert secret["metadata"]["name"] == "api-server-keys"
    assert "immutable" not in secret, "a new key rolls no pod"
    assert not [key for key in (*plain, mine, "the-secret-of-bob-0123") if key in json.dumps(secret)]
    (tmp_path / "keys").write_text(secret["stringData"]["value"]["keys"])
    keys = Keys(tmp_path / "keys")
    found = [keys.holder([f"Bearer {key}"], []) for key in (*plain[:2], mine)]
    assert [each.name for each in found] == ["key-1", "key-2", "alice"]
    grants = [each.grant for each in found]
    assert (grants[2].models, grants[2].requests_per_minute, [each.priority for each in grants]) == ({"a:1"}, 6, [0, 0, 3])
    assert secret["stringData"]["value"]["keys"].count("priority") == 1, "a gateway of the version before does not know it"


@pytest.mark.parametrize(
    ("status", "address"),
    [
        ({"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}]}}, "192.0.2.7"),
        ({"loadBalancer": {"ingress": [{"hostname": "fleet.example.com"}]}}, "fleet.example.com"),
        ({"loadBalancer": {}}, None),
        (None, None),
    ],
)
def test_a_load_balancer_is_noted_as_asked_for_and_its_address_is_an_output(status: dict[str, Any] | None, address: str | None) -> None:
    found: list[str | None] = []

    def construct() -> None:
        api = c.ApiServer("api", dataclasses.replace(API_SERVER, service_type="LoadBalancer", node_port=None))
        api.load_balancer.apply(found.append)

    recorder = render(construct, outputs={"kubernetes:core/v1:Service": {"status": status} if status else {}})
    assert found == [address]
    service = {"kind": "Service", **recorder.one("Service")}
    assert rules.nothing_is_exposed_unasked([service]) == []
    del service["metadata"]["annotations"]["modelfleet.dev/exposed"]
    assert rules.nothing_is_exposed_unasked([service])


@pytest.mark.parametrize("retain", [True, False])
def test_the_namespace_and_the_claim_say_whether_data_is_kept(retain: bool) -> None:
    assert governance(retain=retain).one("Namespace")["metadata"]["labels"]["modelfleet.dev/data"] == ("retain" if retain else "disposable")
    annotations = storage(retain=retain).one("PersistentVolumeClaim")["metadata"]["annotations"]
    assert annotations == {"modelfleet.dev/protected": str(retain).lower()}


@pytest.mark.parametrize("gpus", [True, False])
def test_gpu_nodes_get_an_exporter_of_their_own(gpus: bool) -> None:
    args = c.MonitoringArgs(
        namespace="ns",
        image="x@sha256:1",
        cache_secret="cache-auth",
        resources=SMALL,
        gpu_nodes=gpus,
        runtime_class="nvidia" if gpus else None,
    )
    recorder = render(lambda: c.Monitoring("m", args))
    assert len(recorder.kind("DaemonSet")) == int(gpus)
    if gpus:
        pod = recorder.one("DaemonSet")["spec"]["template"]["spec"]
        assert pod["runtimeClassName"] == "nvidia"
        assert "nvidia.com/gpu" not in str(pod["containers"][0]["resources"]), "it looks at GPUs and takes none"


def test_the_exporter_reads_the_result_of_a_scan_where_there_is_one() -> None:
    args = c.MonitoringArgs(namespace="ns", image="x@sha256:1", cache_secret="cache-auth", resources=SMALL, gpu_nodes=True)
    recorder = render(lambda: c.Monitoring("m", args))
    pod = recorder.one("Deployment")["spec"]["template"]["spec"]
    assert {"name": "scan", "configMap": {"name": "scan-result", "optional": True}} in pod["volumes"]
    (container,) = pod["containers"]
    (mount,) = (each for each in container["volumeMounts"] if each["name"] == "scan")
    values = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert values["EXPORTER_SCAN_FILE"] == f"{mount['mountPath']}/scan.json"
    assert "scan" not in str(recorder.one("DaemonSet")), "one of them tells it"


@pytest.mark.parametrize("preview", [True, False])
def test_prebuilt_images_are_taken_as_they_are(preview: bool) -> None:
    refs = {
        name: f"modelfleet/{name}@sha256:{'a' * 64}"
        for name in ("ollama", "ollama-agent", "model-sync", "models", "model-server", "cache-server", "api-server", "metrics-exporter")
    }
    recorder = render(lambda: c.RuntimeImages("i", c.RuntimeImagesArgs(refs=refs)), preview=preview)
    assert [resource.typ for resource in recorder.resources] == ["modelfleet:index:RuntimeImages"]


@pytest.mark.parametrize(("builder", "kind"), [("docker-build", "docker-build:index:Image"), ("docker", "docker:index/image:Image")])
def test_images_are_built_under_a_tag_of_their_content(builder: Literal["docker-build", "docker"], kind: str) -> None:
    recorder = render(lambda: c.RuntimeImages("i", c.RuntimeImagesArgs(builder=builder, registry="registry.example.com/x", source=ROOT)))
    built = [resource.inputs for resource in recorder.resources if resource.typ == kind]
    assert len(built) == 13
    tags = {tag for inputs in built for tag in inputs.get("tags", [inputs.get("imageName")])}
    assert all(":src-" in tag for tag in tags)


def test_an_image_stands_on_the_one_that_this_build_pushed() -> None:
    """The chain is made in its order, each once, also where its end alone is wanted; another base is another image."""
    wanted = c.RuntimeImagesArgs(builder="docker-build", registry="registry.example.com/x", source=ROOT, images=["model-server-vllm"])
    pushed = {"docker-build:index:Image": {"ref": "registry.example.com/x/some@sha256:1"}}
    recorder = render(lambda: c.RuntimeImages("i", wanted), outputs=pushed)
    built = [(item["tags"][0].rpartition("/")[2].partition(":")[0], item["buildArgs"].get("BASE")) for item in recorder.kind("Image")]
    base = "registry.example.com/x/some@sha256:1"
    assert built == [("cuda-base", None), ("python-base", base), ("model-server-vllm", base)]


def test_another_base_is_another_tag(tmp_path: Path) -> None:
    for context in ("images/cuda-base", "images/python-base", "images/model-server-vllm", "model_server"):
        shutil.copytree(ROOT / context, tmp_path / context)
    before = [content_tag(tmp_path, image) for image in ("cuda-base", "python-base", "model-server-vllm")]
    (tmp_path / "images/cuda-base/Dockerfile").write_text("FROM x")
    assert not set(before) & {content_tag(tmp_path, image) for image in ("cuda-base", "python-base", "model-server-vllm")}


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (c.RuntimeImagesArgs(images=["ollama"]), "i: got no reference for ollama, want repository@sha256:"),
        (
            c.RuntimeImagesArgs(builder="docker-build", registry="r"),
            "i: got source=None, registry='r' with builder=docker-build, want both; pass",
        ),
        (c.RuntimeImagesArgs(builder="docker", source=ROOT), "i: got source="),
        (
            c.RuntimeImagesArgs(builder="docker", registry="r", source=ROOT / "docs"),
            f"source: got {ROOT / 'docs'} without images/cuda-base, want",
        ),
    ],
)
def test_images_without_a_reference_or_a_source_are_refused(args: c.RuntimeImagesArgs, line: str) -> None:
    with pytest.raises(pulumi.RunError) as refusal:
        render(lambda: c.RuntimeImages("i", args))
    assert str(refusal.value).startswith(line)


def test_unsigned_images_are_refused_by_a_webhook_that_fails_closed() -> None:
    args = c.ImageTrustArgs(
        protected_namespace="ns",
        namespace="ns-admission",
        image="x@sha256:1",
        public_keys="-----BEGIN PUBLIC KEY-----",
        certificate="a-certificate",
        private_key="a-private-key",
        mirror="",
        registries=["registry.example.com", "other.example.com:5000"],
        replicas=2,
        resources=SMALL,
    )
    recorder = render(lambda: c.ImageTrust("trust", args))
    webhook = recorder.one("ValidatingWebhookConfiguration")["webhooks"][0]
    assert (webhook["failurePolicy"], webhook["sideEffects"]) == ("Fail", "None")
    assert webhook["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "ns"}
    assert webhook["rules"][0]["resources"] == ["pods", "pods/ephemeralcontainers"]
    assert base64.b64decode(webhook["clientConfig"]["caBundle"]) == b"a-certificate"
    assert webhook["timeoutSeconds"] > 5, "the verifier gives up first, and says why"
    deployment = recorder.one("Deployment")
    values = {entry["name"]: entry.get("value") for entry in deployment["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert values["VERIFIER_REGISTRIES"] == "registry.example.com,other.example.com:5000"
    assert "a-private-key" not in str(deployment)
    assert recorder.one("Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    policies = {item["metadata"]["name"]: item["spec"] for item in recorder.kind("NetworkPolicy")}
    assert policies.keys() == {"default-deny", "image-verifier"}
    registries, _ = policies["image-verifier"]["egress"]
    assert registries == {"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}, {"ipBlock": {"cidr": "::/0"}}]}, "of either family"


def test_ports_of_the_contract_are_those_of_the_design() -> None:
    assert (PORTS["model-server"], PORTS["cache-server"], PORTS["ollama"]) == (8080, 6379, 11434)
