"""The defects of the original design. Each test shows that a rule finds the defect, and that our own rendering has none.

Numbers are those of docs/defects.md. Defects that are no property of a file have their test elsewhere; the table says where.
"""

import copy
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from components import node_runtime
from infra.analysis.policy import dockerfiles, rules
from infra.preparation import gpu_nodes
from infra.program.settings import parse
from infra.program.settings.committed import stack_config
from infra.program.settings.section import SettingsError

ROOT = Path(__file__).resolve().parents[2]
OURS = {
    stack: [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "tests" / "golden" / stack).glob("*.yaml"))]
    for stack in ("dev", "prod")
}
PINS = tomllib.loads((ROOT / "images" / "pins.toml").read_text())["bases"]
DOCKERFILES = [path.read_text() for path in sorted((ROOT / "images").glob("*/Dockerfile"))]

DESIGN_STATEFULSET: dict[str, Any] = yaml.safe_load("""
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: ollama-fleet}
spec:
  serviceName: ollama
  replicas: 3
  selector: {matchLabels: {app: ollama}}
  template:
    spec:
      containers:
      - name: ollama
        image: ollama-custom:latest
        resources: {limits: {nvidia.com/gpu: 1}}
        volumeMounts:
        - {name: models, mountPath: /root/.ollama}
        - {name: shared-cache, mountPath: /cache}
  volumeClaimTemplates:
  - metadata: {name: models}
    spec: {accessModes: [ReadWriteOnce], storageClassName: local-nvme, resources: {requests: {storage: 100Gi}}}
""")
DESIGN_STORAGE: list[dict[str, Any]] = list(
    yaml.safe_load_all("""
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: local-nvme}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: nvme-cache-1}
spec: {capacity: {storage: 100Gi}, storageClassName: local-nvme, local: {path: /mnt/nvme/cache-1}}
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: shared-models}
provisioner: kubernetes.io/nfs
parameters: {server: nfs.example.com, path: /exports/models, readOnly: "false"}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: shared-models}
spec: {accessModes: [ReadWriteMany], storageClassName: shared-models, resources: {requests: {storage: 1Ti}}}
""")
)
DESIGN_POLICY: list[dict[str, Any]] = list(
    yaml.safe_load_all("""
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: nvidia}
handler: nvidia
scheduling: {nodeSelector: {nvidia.com/gpu: present}}
---
apiVersion: v1
kind: ResourceQuota
metadata: {name: gpu-quota}
spec: {hard: {requests.nvidia.com/gpu: 8, limits.nvidia.com/gpu: 8}}
---
apiVersion: v1
kind: LimitRange
metadata: {name: gpu-limits}
spec: {limits: [{type: Container, defaultRequest: {nvidia.com/gpu: "1"}, default: {nvidia.com/gpu: "1"}}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: cache-config}
data: {cache.conf: 'max_size = "50GB"'}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: model-server-policy}
spec:
  podSelector: {matchLabels: {app: model-server}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from: [{podSelector: {matchLabels: {app: api-server}}}]
    ports: [{protocol: TCP, port: 8080}]
  egress:
  - to: [{podSelector: {matchLabels: {app: cache-server}}}]
    ports: [{protocol: TCP, port: 6379}]
""")
)
DESIGN = [DESIGN_STATEFULSET, *DESIGN_STORAGE, *DESIGN_POLICY]
BASES = """FROM nvidia/cuda:12.3.1-runtime-ubuntu22.04 as cuda-base
RUN apt-get update && apt-get install -y --no-install-recommends \\
    cuda-toolkit-12-3
"""
PYTHON_BASE = "FROM python:3.12-slim as python-base\nRUN pip install --no-cache-dir \\\n    torch \\\n    transformers\n"
OLLAMA_BASE = "FROM ollama/ollama:latest as ollama-base\n"
MODEL_SERVER = """FROM cuda-base as model-server
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
COPY ./model_server /app/model_server
VOLUME /cache
HEALTHCHECK --interval=30s CMD curl -f http://localhost:8080/health || exit 1
ENTRYPOINT ["python", "/app/model_server/main.py"]
"""


def stack_document(stack: str) -> dict[str, Any]:
    config = {name.removeprefix("modelfleet:"): value for name, value in stack_config(stack).items()}
    return copy.deepcopy(config | {"cluster": {"context": "somewhere", "identity": "3f1c"}})


def finds(rule: rules.Rule, text: str, defective: list[dict[str, Any]] = DESIGN) -> None:
    """The rule names the defect in the design, and nothing in what we render."""
    assert any(text in line for line in rule(defective)), rule(defective)
    for stack, objects in OURS.items():
        assert rule(objects) == [], stack


def lints(rule: Callable[[str], list[str]], text: str, defective: str) -> None:
    assert any(text in line for line in rule(defective)), rule(defective)
    for ours in DOCKERFILES:
        assert rule(ours) == []


def pinned(text: str) -> list[str]:
    return dockerfiles.bases_are_pinned(text, PINS)


def test_defect_01_a_cuda_tag_that_its_vendor_deletes() -> None:
    lints(pinned, "FROM nvidia/cuda:12.3.1-runtime-ubuntu22.04: got an unpinned base", BASES)


def test_defect_02_a_compiler_in_a_runtime_image() -> None:
    lints(dockerfiles.runtime_has_no_compiler, "cuda-toolkit-12-3: got it in the final stage", BASES)


def test_defect_03_a_python_entrypoint_without_python() -> None:
    lints(dockerfiles.can_run_its_entrypoint, "got python on cuda-base", MODEL_SERVER)


def test_defect_04_packages_without_versions() -> None:
    lints(dockerfiles.packages_are_locked, "got packages without hashes", PYTHON_BASE)


def test_defect_05_images_that_move() -> None:
    lints(pinned, "FROM ollama/ollama:latest: got an unpinned base", OLLAMA_BASE)
    finds(rules.images_cannot_move, "StatefulSet/ollama-fleet: got image ollama-custom:latest")


def test_defect_06_07_a_healthcheck_that_nothing_runs() -> None:
    """Two faults of one instruction: it calls a program that the image lacks, and Kubernetes runs none of them."""
    lints(dockerfiles.has_nothing_that_kubernetes_ignores, "HEALTHCHECK: got it", MODEL_SERVER)


def test_defect_08_a_volume_that_hides_the_image() -> None:
    lints(dockerfiles.has_nothing_that_kubernetes_ignores, "VOLUME: got it", MODEL_SERVER)


def test_defect_09_root_and_a_stage_of_another_file() -> None:
    lints(dockerfiles.runs_as_a_number, "USER: got root", MODEL_SERVER)
    lints(pinned, "FROM cuda-base: got an unpinned base", MODEL_SERVER)


def test_defect_10_a_template_without_the_selectors_labels() -> None:
    finds(rules.labels_match_selectors, "StatefulSet/ollama-fleet: got pod labels {}")


def test_defect_11_a_mount_without_a_volume() -> None:
    finds(rules.mounts_have_volumes, "got a mount of shared-cache, want a volume of that name")


def test_defect_12_a_stateful_set_without_its_service() -> None:
    finds(rules.stateful_sets_have_their_service, "got serviceName ollama, want a headless Service")


def test_defect_13_and_23_volumes_made_by_hand() -> None:
    finds(rules.volumes_are_made_by_provisioners, "PersistentVolume/nvme-cache-1: got a volume by hand")
    finds(rules.claims_can_be_provisioned, "StorageClass/local-nvme: got provisioner kubernetes.io/no-provisioner")


def test_defect_14_a_download_for_every_replica() -> None:
    finds(rules.replicas_share_one_download, "StatefulSet/ollama-fleet: got a claim for each replica and none that they share")


def test_defect_15_pods_without_security_or_the_designs_own_classes() -> None:
    finds(rules.pods_are_restricted, "StatefulSet/ollama-fleet: got a pod that may be root")
    finds(rules.gpu_pods_use_the_gpu_runtime, "got a GPU without runtimeClassName and priorityClassName")


def test_defect_16_servers_without_ports_probes_and_requests() -> None:
    finds(rules.servers_are_probed, "got container ollama without readinessProbe, livenessProbe")
    finds(rules.containers_ask_for_what_they_need, "got container ollama without requests or memory limit")


def test_defect_17_a_store_in_roots_home() -> None:
    finds(rules.nothing_is_mounted_into_roots_home, "got a mount at /root/.ollama")


def test_defect_18_no_variant_without_gpus() -> None:
    assert _gpu_containers(OURS["prod"]), "prod has GPUs, or this test sees nothing"
    assert _gpu_containers(OURS["dev"]) == []


def _gpu_containers(objects: list[dict[str, Any]]) -> list[str]:
    return [
        container["name"]
        for item in objects
        for container in item.get("spec", {}).get("template", {}).get("spec", {}).get("containers", [])
        if any("nvidia.com" in key for key in container["resources"]["limits"])
    ]


def test_defect_19_a_provisioner_that_does_not_exist() -> None:
    finds(rules.claims_can_be_provisioned, "StorageClass/shared-models: got provisioner kubernetes.io/nfs")


def test_defect_20_a_parameter_that_the_driver_does_not_know() -> None:
    shared = {**DESIGN_STORAGE[2], "provisioner": "nfs.csi.k8s.io"}
    finds(rules.storage_parameters_are_known, "got parameter readOnly, want one of", [shared])


def test_defect_21_models_that_go_with_their_claim() -> None:
    classes = {stack: {item["reclaimPolicy"] for item in objects if item["kind"] == "StorageClass"} for stack, objects in OURS.items()}
    assert classes == {"dev": {"Delete"}, "prod": {"Retain"}}
    assert "reclaimPolicy" not in DESIGN_STORAGE[2]


def test_defect_22_a_claim_that_nobody_mounts_in_no_namespace() -> None:
    finds(rules.claims_are_used, "PersistentVolumeClaim/shared-models: got a claim that no pod mounts")
    finds(rules.objects_are_in_a_namespace, "PersistentVolumeClaim/shared-models: got no namespace")


def test_defect_24_a_volume_without_headroom() -> None:
    """The design's volume is as large as its claim, and its models may be as large as both; a copy in the making needs room, too."""
    config = stack_document("prod")
    config["models"][0]["size"] = config["storage"]["hot"]["size"]
    with pytest.raises(SettingsError, match=r"modelfleet:storage.hot.size: got 100Gi, want"):
        parse(config)
    parse(stack_document("prod"))


def test_defect_25_a_label_that_no_node_has() -> None:
    finds(rules.runtime_classes_find_gpu_nodes, "want nvidia.com/gpu.present=true")


def handlers(files: Mapping[str, str]) -> set[str]:
    """Names that a RuntimeClass can use on a node with these files."""
    found: set[str] = set()
    for path, text in files.items():
        document = tomllib.loads(text)
        if path.startswith("/etc/containerd/"):
            found |= {name for plugin in document["plugins"].values() for name in plugin["containerd"]["runtimes"]}
        if path.startswith("/etc/crio/"):
            found |= set(document["crio"]["runtime"]["runtimes"])
    return found


def test_defect_27_a_handler_that_no_node_has() -> None:
    (designed,) = (item for item in DESIGN if item["kind"] == "RuntimeClass")
    (ours,) = (item for item in OURS["prod"] if item["kind"] == "RuntimeClass")
    assert designed["handler"] not in handlers({}), "the design brings nothing to its nodes"
    for runtime in get_args(node_runtime.Runtime):
        assert ours["handler"] in handlers(node_runtime.node_files(runtime, "cdi", ours["handler"])), runtime


def test_defect_28_a_quota_that_is_never_counted() -> None:
    finds(rules.quotas_count_what_exists, "got limits.nvidia.com/gpu, want requests.nvidia.com/gpu")


def test_defect_29_a_gpu_for_every_container() -> None:
    finds(rules.no_container_gets_a_gpu_by_default, "LimitRange/gpu-limits: got a default of nvidia.com/gpu")
    maximum = {"type": "Container", "max": {"nvidia.com/gpu": "1"}}
    trap = {"kind": "LimitRange", "metadata": {"name": "trap"}, "spec": {"limits": [maximum]}}
    finds(rules.no_container_gets_a_gpu_by_default, "LimitRange/trap: got a default of nvidia.com/gpu", [trap])


def test_defect_30_a_quota_without_default_requests() -> None:
    quota = {"kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": {"requests.cpu": "4"}}}
    finds(rules.quotas_come_with_defaults, "ResourceQuota/q: got requests.cpu without a default request", [quota])


def test_defect_31_one_priority_for_all_gpu_pods() -> None:
    finds(
        rules.priorities_are_tiered,
        "PriorityClass/gpu-priority: got no gateway class above or no waiting class below",
        [{"kind": "PriorityClass", "metadata": {"name": "gpu-priority"}, "value": 1_000_000}],
    )
    for objects in OURS.values():
        values = {item["metadata"]["name"]: item["value"] for item in objects if item["kind"] == "PriorityClass"}
        used = {
            item["metadata"]["name"]: item["spec"]["template"]["spec"].get("priorityClassName")
            for item in objects
            if item["kind"] in ("Deployment", "StatefulSet", "Job")
        }
        # Servers wait for the writer, so it may take the room of batch work as they do.
        serving = {values[used[name]] for name in ("ollama", "model-server", "models-writer")}
        assert [values[used["api-server"]], *serving] == [values["gateway-priority"], values["gpu-priority"]]
        assert values["gateway-priority"] > values["gpu-priority"] > values["gpu-batch-priority"]


def test_defect_32_objects_in_no_namespace() -> None:
    finds(rules.objects_are_in_a_namespace, "ResourceQuota/gpu-quota: got no namespace")


def test_defect_33_a_configuration_that_no_program_reads() -> None:
    finds(rules.config_maps_are_used, "ConfigMap/cache-config: got a ConfigMap that nothing mounts")
    conf = next(item["data"]["cache.conf"] for item in OURS["prod"] if item["kind"] == "ConfigMap" and "cache.conf" in item["data"])
    assert f"maxmemory {4 * 2**30}\nmaxmemory-policy allkeys-lru" in conf


def test_defect_34_policies_for_servers_that_do_not_exist() -> None:
    finds(rules.policies_select_pods_that_exist, "got a selector {'app': 'model-server'} that no pod has")


def test_defect_35_egress_without_dns() -> None:
    finds(rules.policies_that_look_names_up_may_reach_dns, "NetworkPolicy/model-server-policy: got egress without DNS")


def test_defect_36_metrics_that_prometheus_may_not_read() -> None:
    def scrapers(item: dict[str, Any]) -> list[str]:
        peers = [peer for rule in item["spec"].get("ingress") or [] for peer in rule.get("from", [])]
        return [peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] for peer in peers if "namespaceSelector" in peer]

    assert scrapers(DESIGN_POLICY[-1]) == []
    policies = {item["metadata"]["name"]: scrapers(item) for item in OURS["prod"] if item["kind"] == "NetworkPolicy"}
    for name in ("api-server", "model-server", "metrics-exporter"):
        assert policies[name] == ["monitoring"]


def test_defect_37_a_namespace_that_is_open() -> None:
    finds(rules.everything_is_denied_by_default, "got no policy that denies everything")


def test_defect_39_traffic_that_crosses_zones() -> None:
    service = {"kind": "Service", "metadata": {"name": "s"}, "spec": {"selector": {"app": "model-server"}}}
    finds(rules.traffic_stays_near, "Service/s: got trafficDistribution None, want PreferClose", [service])


PHASES = {
    "Base infrastructure": ["container runtimes", "GPU support", "storage classes", "monitoring"],
    "Ollama integration": ["Ollama fleet", "model sharing", "caching", "scaling"],
    "Optimization": ["performance tuning", "resource optimization", "network policies", "security hardening"],
}
"""The design's three phases, by weeks and without a word on when each is reached."""


def test_defect_40_phases_without_acceptance() -> None:
    """docs/acceptance.md names tests for every item of every phase; test_acceptance.py sees that they exist."""
    page = (ROOT / "docs" / "acceptance.md").read_text().partition("\n## Phases\n")[2].partition("\n## ")[0]
    accepted: dict[str, list[str]] = {}
    for phase, item, named in re.findall(r"^\| (.+?): (.+?) \| .+? \| (.+) \|$", page, re.MULTILINE):
        assert "`tests/" in named, item
        accepted.setdefault(phase, []).append(item)
    assert accepted == PHASES


def test_defect_41_container_runtimes_side_by_side() -> None:
    """A node has one that the kubelet talks to, and NVIDIA's is an OCI runtime below it."""
    drop_ins = {runtime: node_runtime.node_files(runtime, "cdi") for runtime in get_args(node_runtime.Runtime)}
    for runtime, files in drop_ins.items():
        configured = {path.split("/")[2] for path in files} - {"nvidia-container-runtime"}
        assert configured == {"crio" if runtime == "crio" else "containerd"}
        assert node_runtime.BINARY in files[node_runtime.DROP_INS[runtime]]
    with pytest.raises(SystemExit):
        gpu_nodes.main(["--runtime", "containerd,crio", "--into", "nowhere"])


def test_defect_42_a_lost_node_keeps_its_replicas_down() -> None:
    """`tests/proofs/test_node_loss.py` runs the commands; here they are all there, for the volumes that we really have."""
    section = (ROOT / "docs" / "runbook.md").read_text().partition("## A node is lost")[2]
    (fleet,) = (item for item in OURS["prod"] if item["kind"] == "StatefulSet" and item["metadata"]["name"] == "ollama")
    (claim,) = fleet["spec"]["volumeClaimTemplates"]
    classes = {item["metadata"]["name"]: item for item in OURS["prod"] if item["kind"] == "StorageClass"}
    # A new volume can be made on another node, which one made by hand for `gpu-node-1` could not.
    assert classes[claim["spec"]["storageClassName"]]["volumeBindingMode"] == "WaitForFirstConsumer"
    assert rules.volumes_are_made_by_provisioners(DESIGN)
    steps = [
        "kubectl delete node $NODE",
        f"kubectl delete pvc -n $NAMESPACE {claim['metadata']['name']}-$REPLICA --wait=false",
        "kubectl delete pod -n $NAMESPACE $REPLICA --force",
        "kubectl wait -n $NAMESPACE --for=condition=Ready pod/$REPLICA",
        "kubectl delete pv $VOLUME",
    ]
    places = [section.index(step) for step in steps]
    assert places == sorted(places)
