"""The configuration is checked as a whole, and every refusal says what to do."""

import copy
import ipaddress
import json
from typing import Any

import pytest

from images import pins
from infra.analysis.manifests import report
from infra.preparation.certificates import verifier_tls
from infra.program import foundations
from infra.program.settings import Settings, constraints, parse
from infra.program.settings.capacity import capacities
from infra.program.settings.committed import stack_config
from infra.program.settings.gpu import GpuSettings
from infra.program.settings.images import BASE_NAMES, IMAGE_NAMES, PROMETHEUS_IMAGE, VERIFIER_IMAGE, VLLM_IMAGE
from infra.program.settings.section import SettingsError, covers_the_internet, in_gib, quantity
from model_sync.catalog import is_held_by
from tests.overlay import WITHOUT_GPUS, sections

SMALL = {"name": "smollm2:135m", "size": "100M", "kvBytesPerToken": 23040}
SERVER = {"name": "model-server", "model": "smollm2:135m", "modelId": "smollm2-135m", "resources": {"cpu": "100m", "memory": "1Gi"}}
REFS = {name: f"modelfleet/{name}@sha256:{'a' * 64}" for name in (*IMAGE_NAMES, PROMETHEUS_IMAGE, VLLM_IMAGE)}
FLEET = "prod, with its model server on CPUs"
"""For what is asked of the fleet's GPUs alone."""


def document(stack: str = "dev") -> dict[str, Any]:
    config = sections(stack_config("prod" if stack == FLEET else stack))
    if stack == FLEET:
        config["models"] = [model for model in config["models"] if model.get("format") != "safetensors"]
        small = {**WITHOUT_GPUS, "model": config["models"][0]["name"], "modelId": "qwen3-coder-30b-cpu", "contextLength": 32768}
        config["modelServers"] = [{**each, **small, "resources": {"cpu": "16", "memory": "64Gi"}} for each in config["modelServers"]]
    config["cluster"] = {"context": "somewhere", "identity": "3f1c"}
    config.setdefault("images", {"refs": REFS})
    return copy.deepcopy(config)


def refusal(**sections: Any) -> str:
    config = document(sections.pop("stack", "dev"))
    for section, values in sections.items():
        config[section] = {**config.get(section, {}), **values} if isinstance(values, dict) else values
    with pytest.raises(SettingsError) as error:
        parse(config)
    return str(error.value)


@pytest.mark.parametrize("stack", ["dev", "prod"])
def test_the_committed_stacks_are_valid(stack: str) -> None:
    assert isinstance(parse(document(stack)), Settings)


def test_prod_has_the_sizes_of_the_design() -> None:
    settings = parse(document("prod"))
    assert (settings.fleet.replicas, settings.fleet.gpus_per_pod, settings.governance.gpu_quota) == (3, 1, 8)
    assert (settings.storage.shared.size, settings.storage.hot.size, settings.cache.max_memory) == ("1Ti", "100Gi", "4Gi")


def test_s16_an_embedding_model_stands_beside_a_coder() -> None:
    small = {"name": "nomic-embed-text:v1.5", "size": "300M", "kvBytesPerToken": 9216, "contextLength": 2048}
    config = document(FLEET)
    config["models"].append(small | {key: config["models"][0][key] for key in ("digest", "source") if key in config["models"][0]})
    with pytest.raises(SettingsError, match=r"contextLength: got 2048, want at least fleet.minContext \d+; raise it, say by minContext"):
        parse(config)
    config["models"][-1]["embeds"] = True
    accepted = parse(config)
    assert [accepted.context_length(model) for model in accepted.models] == [accepted.fleet.context_length, 2048]
    config["models"][0]["contextLength"] = 2048
    with pytest.raises(SettingsError, match=r"models.0.contextLength: got 2048, want at least fleet.minContext"):
        parse(config)


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"fleet": {"replicas": 0}}, "modelfleet:fleet.replicas: got 0, want greater than or equal to 1; correct it"),
        ({"fleet": {"replicsa": 1}}, "modelfleet:fleet.replicsa: got an unknown key, want one of autoscaled, contextLength,"),
        (
            {"fleet": {"resources": {"cpu": "1", "memry": "1Gi"}}},
            "modelfleet:fleet.resources.memry: got an unknown key, want one of cpu, memory",
        ),
        (
            {"fleet": {"resources": {"cpu": "much", "memory": "1Gi"}}},
            "modelfleet:fleet.resources.cpu: got 'much', want a Kubernetes quantity",
        ),
        (
            {"fleet": {"autoscaled": True, "scaleToZero": {"kubernetesCidrs": ["10.0.0.1/32"]}}},
            "modelfleet:fleet.autoscaled: got true with scaleToZero, want one owner of the number of servers; remove one of them",
        ),
        (
            {"fleet": {"scale": {"kubernetesCidrs": ["10.0.0.1/32"]}, "scaleToZero": {"kubernetesCidrs": ["10.0.0.1/32"]}}},
            "modelfleet:fleet.scaleToZero: got a section with scale, want one owner of the number of servers; remove one of them",
        ),
        (
            {"fleet": {"replicas": 2, "scale": {"min": 3, "kubernetesCidrs": ["10.0.0.1/32"]}}},
            "modelfleet:fleet.scale.min: got 3, want at most fleet.replicas 2; lower it, or raise that",
        ),
        ({"fleet": {"scale": {"min": 1}}}, "modelfleet:fleet.scale.kubernetesCidrs: got nothing, want a value"),
        (
            {"modelServers": [SERVER, SERVER | {"name": "b", "modelId": "b", "scale": {"min": 2, "kubernetesCidrs": ["10.0.0.1/32"]}}]},
            "modelfleet:modelServers.1.scale.min: got 2, want at most modelServers.1.replicas 1; lower it, or raise that",
        ),
        (
            {"modelServers": [SERVER | {"scale": {"min": 0}}]},
            "modelfleet:modelServers.0.scale.kubernetesCidrs: got nothing, want a value",
        ),
        (
            {"models": [{**SMALL, "replicas": 1}], "fleet": {"scale": {"kubernetesCidrs": ["10.0.0.1/32"]}}},
            "modelfleet:models.0.replicas: got 1 with fleet.scale, want every model on every replica",
        ),
        ({"fleet": {"scaleToZero": {}}}, "modelfleet:fleet.scaleToZero.kubernetesCidrs: got nothing, want a value"),
        (
            {"fleet": {"minContext": 16384}},
            "modelfleet:models.0.contextLength: got 4096, want at least fleet.minContext 16384; "
            "raise it, say by minContext that less will do, or by models.embeds that it does not chat",
        ),
        (
            {"models": [{**SMALL, "name": "qwen3.5:4b"}], "fleet": {"numParallel": 2}},
            "modelfleet:fleet.numParallel: got 2, want 1 with model qwen3.5:4b: Ollama serves its family one request at a time",
        ),
        ({"fleet": {"gpusPerPod": 1}}, "modelfleet:fleet.gpusPerPod: got 1, want 0 while gpu.enabled is false"),
        ({"stack": FLEET, "fleet": {"replicas": 9}}, "modelfleet:fleet: got 9 GPUs (replicas 9 x gpusPerPod 1), want at most"),
        (
            {"models": [{**SMALL, "replicas": 1}], "fleet": {"autoscaled": True}},
            "modelfleet:models.0.replicas: got 1 with fleet.autoscaled, want every model on every replica",
        ),
        (
            {"models": [{**SMALL, "replicas": 1}], "fleet": {"scaleToZero": {"kubernetesCidrs": ["10.0.0.1/32"]}}},
            "modelfleet:models.0.replicas: got 1 with fleet.scaleToZero, want every model on every replica",
        ),
        ({"models": [SMALL, SMALL]}, "modelfleet:models: got smollm2:135m, smollm2:135m, want each name once"),
        ({"models": [{**SMALL, "name": "untagged"}]}, "modelfleet:models.0.name: got 'untagged', want"),
        (
            {"models": [{**SMALL, "sise": 1}]},
            "modelfleet:models.0.sise: got an unknown key, want one of contextLength, digest, embeds, format, keepAlive, kvBytesPerToken",
        ),
        ({"models": []}, "modelfleet:models: got [], want "),
        ({"modelServers": []}, "modelfleet:modelServers: got none, want one at least; add one"),
        (
            {"modelServers": [SERVER | {"model": "other:1"}]},
            "modelfleet:modelServers.0.model: got other:1, want one of models smollm2:135m",
        ),
        (
            {"modelServers": [SERVER, SERVER | {"modelId": "b"}]},
            "modelfleet:modelServers.1.name: got model-server again, want each name once; choose another",
        ),
        ({"modelServers": [SERVER | {"name": "Coder"}]}, "modelfleet:modelServers.0.name: got 'Coder', want match pattern"),
        ({"modelServers": [SERVER | {"name": "a" * 41}]}, "modelfleet:modelServers.0.name: got 'aaaa"),
        (
            {"modelServers": [SERVER | {"name": "a", "placement": {"nodeSelectr": {}}}]},
            "modelfleet:modelServers.0.placement.nodeSelectr: got an unknown key, want one of",
        ),
        (
            {"modelServers": [SERVER, SERVER | {"name": "metrics", "modelId": "b"}]},
            "modelfleet:modelServers.1.name: got metrics, want one that names no Service of another model server; choose another",
        ),
        (
            {"modelServers": [SERVER | {"name": "a"}, SERVER | {"name": "a-metrics", "modelId": "b"}]},
            "modelfleet:modelServers.1.name: got a-metrics, want one that names no Service of another model server; choose another",
        ),
        (
            {"modelServers": [SERVER, SERVER | {"name": "b"}]},
            "modelfleet:modelServers.1.modelId: got smollm2-135m again, want an id of its own; for more of one server, raise its replicas",
        ),
        (
            {"modelServers": [SERVER], "aliases": {"smollm2-135m": {"model": "smollm2:135m"}}},
            "modelfleet:aliases.smollm2-135m: got the name of a model, want one that no model has; choose another",
        ),
        (
            {"modelServers": [SERVER, SERVER | {"name": "b", "modelId": "b", "resources": {"cpu": "9", "memory": "1Gi"}}]},
            "modelfleet:governance.cpu: got 4, want at least 1",
        ),
        ({"models": [{**SMALL, "size": "1Gi"}]}, "modelfleet:storage.hot.size: got 1Gi, want at least 1.1Gi, the models and a tenth more"),
        (
            {"models": [{**SMALL, "size": "3Gi"}], "storage": {"hot": {"provisioner": "a.b/c", "size": "4Gi"}}},
            "modelfleet:storage.shared.size: got 2Gi, want at least 3.0Gi, the sum of all models",
        ),
        (
            {"fleet": {"promptCache": "8Gi"}},
            "modelfleet:fleet.resources.memory: got 1Gi, want at least 8.2Gi (weights 0.1Gi, promptCache 8.0Gi, KV cache 0.1Gi)",
        ),
        (
            {"modelServers": [SERVER | {"contextLength": 32768}]},
            "modelfleet:modelServers.0.resources.memory: got 1Gi, want at least 1.5Gi (weights 0.1Gi, promptCache 0.0Gi, KV cache 1.4Gi)",
        ),
        (
            {"modelServers": [SERVER | {"promptCache": "2Gi"}]},
            "modelfleet:modelServers.0.resources.memory: got 1Gi, want at least 2.3Gi (weights 0.1Gi, promptCache 2.0Gi, KV cache 0.2Gi)",
        ),
        (
            {"governance": {"claims": 2}},
            "modelfleet:governance.claims: got 2, want at least 4, one a replica, the shared one and Prometheus'",
        ),
        (
            {"images": {"refs": {name: ref for name, ref in REFS.items() if name != PROMETHEUS_IMAGE}}},
            "modelfleet:images.refs.prometheus: got nothing, want a reference with monitoring.prometheus; add it, or remove",
        ),
        ({"monitoring": {"prometheus": {"retentionDays": 0}}}, "modelfleet:monitoring.prometheus.retentionDays: got 0, want greater than"),
        ({"governance": {"storage": "1Gi"}}, "modelfleet:governance.storage: got 1Gi, want at least 5.0Gi, the sum of all claims"),
        ({"stack": "prod", "governance": {"pods": 10}}, "modelfleet:governance.pods: got 10, want at least 14, all replicas and six more"),
        (
            {"stack": "prod", "governance": {"ephemeralStorage": "100Mi"}},
            "modelfleet:governance.ephemeralStorage: got 100Mi, want at least 7.1Gi, "
            "64Mi for each of 18 containers and 3Gi for each of 2 with vLLM",
        ),
        ({"stack": "prod", "governance": {"claims": 3}}, "modelfleet:governance.claims: got 3, want at least 6"),
        ({"cache": {"maxMemory": "0"}}, "modelfleet:cache.maxMemory: got '0', want at least 1Mi; add a unit"),
        ({"fleet": {"resources": {"cpu": "0", "memory": "1Gi"}}}, "modelfleet:fleet.resources.cpu: got '0', want at least 1m"),
        ({"apiServer": {"clientCidrs": ["10.0.0.1/8"]}}, "modelfleet:apiServer.clientCidrs.0: got '10.0.0.1/8', want a network such as"),
        ({"apiServer": {"clientCidrs": ["fd00::1/8"]}}, "modelfleet:apiServer.clientCidrs.0: got 'fd00::1/8', want a network such as"),
        ({"apiServer": {"clientCidrs": ["fe80::%eth0/64"]}}, "modelfleet:apiServer.clientCidrs.0: got 'fe80::%eth0/64', want a network"),
        (
            {"apiServer": {"clientCidrs": ["::ffff:10.0.0.0/104"]}},
            "got '::ffff:10.0.0.0/104', want a network such as 10.0.0.0/8 or fd00::/8",
        ),
        ({"gpu": {"enabled": True}}, "modelfleet:gpu.memory: got nothing, want one GPU's memory such as 46068Mi"),
        ({"gpu": {"sharing": {"strategy": "mps", "replicas": 2}}}, "modelfleet:gpu.sharing.strategy: got mps, want none while gpu.enabled"),
        (
            {"modelServers": [SERVER | {"modelId": "smollm2:135m"}]},
            "modelfleet:modelServers.0.modelId: got smollm2:135m, want an id that no model has",
        ),
        ({"cache": {"maxMemory": "1Gi"}}, "modelfleet:cache.maxMemory: got 1Gi, want less than cache.resources.memory 128Mi"),
        ({"governance": {"memory": "1Gi"}}, "modelfleet:governance.memory: got 1Gi, want at least"),
        ({"apiServer": {"serviceType": "ClusterIP"}}, "modelfleet:apiServer.nodePort: got 30080 with serviceType ClusterIP"),
        ({"apiServer": {"nodePort": 80}}, "modelfleet:apiServer.nodePort: got 80, want greater than or equal to 30000"),
        ({"cluster": {"context": None}}, "modelfleet:cluster.context: got nothing, want a context of your kubeconfig"),
        ({"cluster": {"identity": None}}, "modelfleet:cluster.identity: got nothing, want the UID"),
        ({"cluster": {"renderTo": "here"}}, "modelfleet:cluster.renderTo: got 'here', want an absolute directory"),
        (
            {"images": {"refs": {**REFS, "ollama": "ollama/ollama:latest"}}},
            "modelfleet:images.refs.ollama: got 'ollama/ollama:latest', want repository@",
        ),
        (
            {"images": {"refs": {}}},
            "modelfleet:images.refs.ollama: got nothing, want a reference for ollama, ollama-agent, model-sync, models",
        ),
        ({"images": {"builder": "docker-build"}}, "modelfleet:images.refs: got references, want none with builder docker-build"),
        ({"images": {"builder": "podman"}}, "modelfleet:images.builder: got 'podman', want 'prebuilt', 'docker-build' or 'docker'"),
        ({"flete": {}}, "modelfleet:flete: got an unknown key, want one of aliases, apiServer, cache,"),
        (
            {"cluster": {"namespace": "kube-system"}},
            "modelfleet:cluster.namespace: got 'kube-system', want a namespace of the stack's own; name another",
        ),
        (
            {"cluster": {"namespace": "default"}},
            "modelfleet:cluster.namespace: got 'default', want a namespace of the stack's own; name another",
        ),
        (
            {"storage": {"hot": {"size": "8Gi"}}},
            "modelfleet:storage.hot.provisioner: got nothing, want a CSI driver; set it, or set className to a class that is there",
        ),
        (
            {"storage": {"hot": {"size": "8Gi", "className": "fast", "parameters": {"a": "b"}}}},
            "modelfleet:storage.hot.parameters: got some for a class that is there, want none; they are that class's own, so remove them",
        ),
    ],
)
def test_a_wrong_value_is_refused_with_its_path_and_the_remedy(sections: dict[str, Any], line: str) -> None:
    assert line in refusal(**sections)


CERTIFICATE = str(json.loads(verifier_tls("x"))["certificate"])
KEY = "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n"


@pytest.mark.parametrize(
    "text", ["certificates", KEY, CERTIFICATE + KEY, CERTIFICATE.replace("M", "N", 1)], ids=["words", "key", "both", "torn"]
)
def test_authorities_of_registries_are_certificates_alone(text: str) -> None:
    trust = {"publicKeys": "-----BEGIN PUBLIC KEY-----", "caBundle": text}
    lines = refusal(images={"refs": {**REFS, VERIFIER_IMAGE: REFS["ollama"]}, "trust": trust})
    assert lines.startswith("modelfleet:images.trust.caBundle: got something else, want certificates in PEM; take those of")
    assert "BEGIN" not in lines


def test_authorities_of_registries_may_be_several() -> None:
    trust = {"publicKeys": "-----BEGIN PUBLIC KEY-----", "caBundle": CERTIFICATE * 2}
    assert parse(document() | {"images": {"refs": {**REFS, VERIFIER_IMAGE: REFS["ollama"]}, "trust": trust}}).images.trust is not None


L40S = "46068Mi"


@pytest.mark.parametrize(
    ("sharing", "line"),
    [
        ({"strategy": "mps"}, "modelfleet:gpu.sharing.replicas: got nothing, want a number of shares for strategy mps"),
        ({"strategy": "mig"}, "modelfleet:gpu.sharing.profile: got nothing, want a MIG profile such as 1g.10gb"),
        ({"strategy": "mig", "profile": "10gb"}, "modelfleet:gpu.sharing.profile: got '10gb', want"),
        ({"replicas": 2}, "modelfleet:gpu.sharing.replicas: got 2 with strategy none, want it with time-slicing or mps"),
        ({"strategy": "mps", "replicas": 2, "profile": "1g.10gb"}, "modelfleet:gpu.sharing.profile: got 1g.10gb with strategy mps"),
        (
            {"strategy": "time-slicing", "replicas": 2},
            "modelfleet:gpu.sharing.acknowledgeNoIsolation: got false, want true for time-slicing",
        ),
        (
            {"strategy": "time-slicing", "replicas": 2, "acknowledgeNoIsolation": True},
            "modelfleet:gpu.sharing.strategy: got time-slicing, want none, mps or mig with governance.production",
        ),
        ({"strategy": "mig", "profile": "7g.80gb"}, "modelfleet:gpu.sharing.profile: got 7g.80gb, want one within gpu.memory 46068Mi"),
        (
            {"strategy": "mps", "replicas": 2},
            "modelfleet:models: got 25.2Gi of GPU memory for qwen3-coder:30b (weights + KV cache of contextLength 65536 x numParallel 1 "
            "+ 1.5Gi a model and GPU), want at most 22.5Gi (22.5Gi a unit by gpu.sharing mps)",
        ),
    ],
)
def test_a_way_of_sharing_that_cannot_hold_is_refused(sharing: dict[str, Any], line: str) -> None:
    assert line in refusal(stack=FLEET, gpu={"sharing": sharing})


@pytest.mark.parametrize(
    ("gpu", "resource", "gib"),
    [
        ({}, "nvidia.com/gpu", 44.99),
        ({"sharing": {"strategy": "mps", "replicas": 4}}, "nvidia.com/gpu.shared", 11.25),
        ({"sharing": {"strategy": "time-slicing", "replicas": 2, "acknowledgeNoIsolation": True}}, "nvidia.com/gpu.shared", 22.49),
        ({"sharing": {"strategy": "mig", "profile": "3g.40gb"}}, "nvidia.com/mig-3g.40gb", 39.25),
        ({"memory": "143771Mi", "sharing": {"strategy": "mig", "profile": "1g.18gb"}}, "nvidia.com/mig-1g.18gb", 16.0),
        ({"memory": "189471Mi", "sharing": {"strategy": "mig", "profile": "1g.24gb+me"}}, "nvidia.com/mig-1g.24gb.me", 20.0),
        ({"memory": "143771Mi", "sharing": {"strategy": "mig", "profile": "2g.35gb"}}, "nvidia.com/mig-2g.35gb", 29.17),
        ({"memory": "143771Mi", "sharing": {"strategy": "mig", "profile": "2g.35gb", "memory": "32Gi"}}, "nvidia.com/mig-2g.35gb", 32.0),
    ],
)
def test_a_unit_of_a_gpu_has_a_name_and_a_memory(gpu: dict[str, Any], resource: str, gib: float) -> None:
    settings = GpuSettings.model_validate({"enabled": True, "memory": L40S, **gpu})
    assert settings.resource == resource
    assert settings.unit_memory / 2**30 == pytest.approx(gib, abs=0.01)


def test_the_gpu_memory_of_a_model_is_weights_context_and_workspace() -> None:
    settings = parse(document("prod"))
    weights, context = 19e9, 98304 * 65536
    assert constraints.gpu_bytes(settings.models[0], settings) == weights + context + 1.5 * 2**30


def test_more_parallel_requests_need_more_gpu_memory() -> None:
    assert "numParallel 8" in refusal(stack="prod", fleet={"numParallel": 8})


def test_shares_are_not_added_up_in_one_pod() -> None:
    gpu = {"sharing": {"strategy": "mig", "profile": "3g.40gb"}}
    assert "modelfleet:fleet.gpusPerPod: got 2, want at most 1 with gpu.sharing mig" in refusal(
        stack="prod", gpu=gpu, fleet={"gpusPerPod": 2}
    )


def test_claims_are_not_for_shares_that_only_the_device_plugin_makes() -> None:
    gpu = {"allocation": "dra", "sharing": {"strategy": "mps", "replicas": 2}}
    assert "modelfleet:gpu.allocation: got dra with sharing mps, want device-plugin" in refusal(stack="prod", gpu=gpu)


@pytest.mark.parametrize(
    ("section", "values", "line"),
    [
        ("fleet", {"replicas": 1}, "modelfleet:fleet.replicas: got 1, want at least 2 with governance.production"),
        ("apiServer", {"replicas": 1}, "modelfleet:apiServer.replicas: got 1, want at least 2 with governance.production"),
        ("storage", {"retain": False}, "modelfleet:storage.retain: got false, want true with governance.production"),
        (
            "apiServer",
            {"serviceType": "LoadBalancer"},
            "modelfleet:apiServer.clientCidrs: got 0.0.0.0/0, ::/0, together a 16th of a family's addresses or more",
        ),
        ("apiServer", {"serviceType": "LoadBalancer", "clientCidrs": ["10.0.0.0/8", "::/0"]}, "got 10.0.0.0/8, ::/0, together"),
        ("apiServer", {"serviceType": "LoadBalancer", "clientCidrs": ["0.0.0.0/1", "128.0.0.0/1"]}, "with serviceType LoadBalancer, want"),
        ("apiServer", {"serviceType": "NodePort"}, "apiServer.clientCidrs: got 0.0.0.0/0, ::/0, together a 16th of"),
        ("apiServer", {"serviceType": "NodePort", "clientCidrs": ["0.0.0.0/0"]}, "with serviceType NodePort, want your clients'"),
    ],
)
def test_production_refuses_what_dev_may_have(section: str, values: dict[str, Any], line: str) -> None:
    assert line in refusal(stack="prod", **{section: values})
    relaxed = document("prod")
    relaxed["governance"]["production"] = False
    relaxed[section] |= values
    parse(relaxed)


def test_production_wants_two_verifiers() -> None:
    trust = {"publicKeys": "-----BEGIN PUBLIC KEY-----", "replicas": 1}
    images = {"builder": "prebuilt", "refs": {**REFS, VERIFIER_IMAGE: REFS["ollama"]}, "trust": trust}
    line = "modelfleet:images.trust.replicas: got 1, want at least 2 with governance.production; raise it"
    assert line in refusal(stack="prod", images=images)


def test_production_wants_two_of_each_model_server() -> None:
    config = document("prod")
    servers = [*config["modelServers"], {**config["modelServers"][0], "name": "b", "modelId": "b", "replicas": 1}]
    assert "modelfleet:modelServers.1.replicas: got 1, want at least 2 with governance.production" in refusal(
        stack="prod", modelServers=servers
    )


@pytest.mark.parametrize("networks", [["10.0.0.0/8"], ["2001:db8::/32"], ["10.0.0.0/8", "fd00::/8"]])
def test_a_load_balancer_for_known_clients_is_fine_in_production(networks: list[str]) -> None:
    config = document("prod")
    config["apiServer"] |= {"serviceType": "LoadBalancer", "clientCidrs": networks}
    assert parse(config).api_server.client_cidrs == networks


@pytest.mark.parametrize(
    ("networks", "whole"),
    [
        (["0.0.0.0/0"], True),
        (["0.0.0.0/1", "128.0.0.0/1"], True),
        (["0.0.0.0/1"], True),
        ([f"{first}.0.0.0/8" for first in range(1, 224) if first != 10], True),
        # All that is routed in IPv6 today.
        (["10.0.0.0/8", "2000::/3"], True),
        (["::/1", "8000::/1"], True),
        # One network is counted once.
        (["10.0.0.0/5", "10.0.0.0/8", *(f"10.{second}.0.0/16" for second in range(256))], False),
        (["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"], False),
        (["192.0.2.7/32"], False),
    ],
)
def test_who_the_clients_are_is_decided_by_all_networks_together(networks: list[str], whole: bool) -> None:
    networks = [str(ipaddress.ip_network(each, strict=False)) for each in networks]
    assert covers_the_internet(networks) is whole


@pytest.mark.parametrize("trusting", [True, False])
def test_names_that_are_made_of_the_namespace_fit(trusting: bool) -> None:
    images = {
        "refs": {**REFS, VERIFIER_IMAGE: REFS["ollama"]},
        **({"trust": {"publicKeys": "-----BEGIN PUBLIC KEY-----"}} if trusting else {}),
    }
    config: dict[str, Any] = document() | {"images": images}
    config["cluster"]["namespace"] = "a" * 53
    parse(config)
    config["cluster"]["namespace"] = "a" * 54
    if not trusting:
        parse(config)
        return
    want = "want at most 53 with images.trust, whose verifier lives in a+-admission; choose a shorter one"
    with pytest.raises(SettingsError, match=f"^modelfleet:cluster.namespace: got 54 characters, {want}$"):
        parse(config)


@pytest.mark.parametrize(
    ("gpu", "says"),
    [
        ({}, "One nvidia.com/gpu is a whole GPU (45.0Gi): no other pod has it, and a fault ends its own pod alone."),
        ({"allocation": "dra"}, "A claim's device is a whole GPU (45.0Gi): no other pod has it, and a fault ends its own pod alone."),
        (
            {"sharing": {"strategy": "mig", "profile": "1g.10gb"}},
            "One nvidia.com/mig-1g.10gb is a partition (9.5Gi): the hardware bounds its memory, and a fault ends its own pod alone.",
        ),
        (
            {"sharing": {"strategy": "mig", "profile": "1g.10gb"}, "allocation": "dra"},
            "A claim's device is a partition (9.5Gi): the hardware bounds its memory, and a fault ends its own pod alone.",
        ),
        (
            {"sharing": {"strategy": "mps", "replicas": 3}},
            "One nvidia.com/gpu.shared is one of 3 shares of a GPU: the MPS daemon bounds its memory (15.0Gi), and a fault ends every pod on "
            "the GPU.",
        ),
        (
            {"sharing": {"strategy": "time-slicing", "replicas": 3, "acknowledgeNoIsolation": True}},
            "One nvidia.com/gpu.shared is one of 3 turns on a GPU: nothing bounds its memory (15.0Gi are planned), a fault ends all.",
        ),
    ],
)
def test_the_preview_says_what_keeps_pods_on_gpus_apart(gpu: dict[str, Any], says: str) -> None:
    assert GpuSettings.model_validate({"enabled": True, "memory": "45Gi", **gpu}).enforces() == says
    assert GpuSettings().enforces() == ""


def test_the_preview_says_between_which_numbers_servers_are_scaled() -> None:
    config = document()
    config["modelServers"][0] |= {"replicas": 2, "scale": {"min": 0, "kubernetesCidrs": ["10.0.0.1/32"]}}
    config["governance"] |= {"cpu": "8", "memory": "16Gi", "storage": "16Gi"}
    config["fleet"] |= {"replicas": 3}
    lines = report.carries(capacities(parse(config))).splitlines()[2:]
    assert [line.split(" | ")[1] for line in lines] == ["3", "0 to 2"]


def test_by_default_clients_of_both_families_may_connect() -> None:
    assert parse(document()).api_server.client_cidrs == ["0.0.0.0/0", "::/0"]


def test_networks_may_be_of_either_family_wherever_they_are_asked_for() -> None:
    config = document()
    both = ["10.0.0.0/8", "fd00::/8", "fd00::7/128"]
    config["fleet"] |= {"scaleToZero": {"kubernetesCidrs": both}}
    config["delivery"], config["network"] = {"networks": both}, {"dns": {"cidrs": both}}
    settings = parse(config)
    assert settings.fleet.scale_to_zero is not None
    assert settings.fleet.scale_to_zero.kubernetes_cidrs == settings.delivery.networks == settings.network.dns.cidrs == both


OLD_SERVER = {"model": "smollm2:135m", "modelId": "smollm2-135m", "resources": {"cpu": "100m", "memory": "1Gi"}}


def of_the_first_release(value: Any) -> dict[str, Any]:
    config = document()
    del config["modelServers"]
    return config | {"modelServer": value}


def test_the_model_server_of_the_first_release_is_the_first_of_the_list() -> None:
    assert parse(of_the_first_release(OLD_SERVER)).model_servers == parse(document() | {"modelServers": [SERVER]}).model_servers
    assert parse(of_the_first_release(OLD_SERVER)).server_components == ["model-server"]
    # What Pulumi makes of no list.
    parse(of_the_first_release(OLD_SERVER) | {"modelServers": []})


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (OLD_SERVER | {"model": "other:1"}, "modelfleet:modelServer.model: got other:1, want one of models smollm2:135m; add it there"),
        (OLD_SERVER | {"sise": 1}, "modelfleet:modelServer.sise: got an unknown key, want one of"),
        (OLD_SERVER | {"name": "a"}, "modelfleet:modelServer.name: got a name, want it in modelServers alone; make all of modelServer"),
        ([OLD_SERVER], "modelfleet:modelServer: got [{'model': 'smollm2:135m', "),
        (None, "modelfleet:modelServer: got None, want "),
    ],
)
def test_what_is_wrong_with_the_old_form_is_said_by_its_own_names(value: Any, line: str) -> None:
    with pytest.raises(SettingsError) as error:
        parse(of_the_first_release(value))
    assert line in str(error.value)
    assert "modelServers.0" not in str(error.value)


def test_the_old_form_is_not_taken_beside_the_new_one() -> None:
    with pytest.raises(SettingsError, match="modelfleet:modelServer: got it beside modelServers, want that alone; make it an item there"):
        parse(document() | {"modelServer": OLD_SERVER})


def test_a_secret_of_the_old_form_is_not_echoed() -> None:
    with pytest.raises(SettingsError, match=r"modelServer\.model: got a secret value, want") as error:
        parse(of_the_first_release(OLD_SERVER | {"model": "hunter2hunter2"}), {"modelServer"})
    assert "hunter2" not in str(error.value)


def test_models_keep_their_order() -> None:
    config = document()
    config["models"] = [{**SMALL, "name": "z:1"}, {**SMALL, "name": "a:1"}]
    config["modelServers"][0]["model"] = "a:1"
    config["fleet"]["resources"]["memory"] = "2Gi"
    assert parse(config).model_names == ["z:1", "a:1"]


def test_values_of_a_secret_section_are_not_echoed() -> None:
    config = document()
    config["fleet"]["keepAlive"] = "hunter2hunter2"
    with pytest.raises(SettingsError, match=r"fleet\.keepAlive: got a secret value, want") as error:
        parse(config, {"fleet"})
    assert "hunter2" not in str(error.value)


def test_all_problems_are_reported_at_once() -> None:
    lines = refusal(fleet={"replicas": 0}, cache={"evictionPolicy": "random"}).splitlines()
    assert [line.split(":")[1].split(".")[0] for line in lines] == ["fleet", "cache"]


def test_a_missing_section_is_named() -> None:
    config = document()
    del config["storage"]
    with pytest.raises(SettingsError, match=r"modelfleet:storage: got nothing, want a value"):
        parse(config)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("100m", 0.1), ("2", 2), ("1.5Gi", 1.5 * 2**30), ("1k", 1000), ("250u", 250e-6), ("5n", 5e-9)),
        *(("1Pi", 2**50), ("1Ei", 2**60), ("2P", 2e15), ("1E", 1e18), ("1e1", 10), ("1E3", 1000), ("1.5e-3", 1.5e-3), ("2e+9", 2e9)),
        *(("+2", 2), (".5", 0.5), ("5.", 5), ("+.5Gi", 2**29)),
    ],
)
def test_quantities(text: str, value: float) -> None:
    assert quantity(text) == pytest.approx(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "+",
        ".",
        "e3",
        "1e",
        "1e+",
        "1e1Gi",
        "1K",
        "1ki",
        "1GB",
        "1 Gi",
        "-1",
        "1,5",
        "0x10",
        "1_000",
        "٣",
        "1\n",
        "inf",
        "nan",
        "8Ei",
        "1e19",
        "1e999",
    ],
)
def test_what_is_no_quantity(text: str) -> None:
    """By Kubernetes' own grammar, or below zero, or more than 64 bits hold."""
    with pytest.raises(ValueError, match="want a Kubernetes quantity"):
        quantity(text)


@pytest.mark.parametrize("memory", ["1Pi", "2e12", ".25Gi", "128Mi"])
def test_kubernetes_ways_to_write_a_size_are_taken(memory: str) -> None:
    config = document()
    config["governance"] |= {"memory": memory if quantity(memory) > 2**40 else "64Gi"}
    config["monitoring"]["resources"]["memory"] = memory if quantity(memory) < 2**40 else "64Mi"
    parse(config)


DIGEST = "sha256:" + "d" * 64
NAMED = {**SMALL, "source": "https://files.example.com/small.gguf", "digest": DIGEST}
COMMIT = "0123456789abcdef" * 2 + "01234567"
HUB = "huggingface://h/team/small"


@pytest.mark.parametrize(
    ("source", "origin"),
    [
        ("image", None),
        ("file:///srv/models/a%20b.gguf", None),
        ("https://198.51.100.7/small.gguf", ("198.51.100.7", 443)),
        ("http://198.51.100.7:8000/small.gguf", ("198.51.100.7", 8000)),
        ("registry://198.51.100.7/team/small:1", ("198.51.100.7", 443)),
        ("registry+http://198.51.100.7:5000/small:1", ("198.51.100.7", 5000)),
        (f"huggingface://198.51.100.7/team/small/q4/small.gguf:{COMMIT}", ("198.51.100.7", 443)),
        (f"huggingface+http://198.51.100.7:8000/team/small/small.gguf:{COMMIT}", ("198.51.100.7", 8000)),
    ],
)
def test_every_kind_of_source_is_taken_and_says_where_the_writer_must_go(source: str, origin: tuple[str, int] | None) -> None:
    config = document()
    config["models"] = [{**SMALL, "source": source, "digest": DIGEST}]
    assert parse(config).models[0].origin == origin


@pytest.mark.parametrize(
    ("model", "line"),
    [
        ({"source": "ftp://files.example.com/x"}, "models.0.source: got 'ftp://files.example.com/x', want image, registry://"),
        ({"source": "https://"}, "models.0.source: got 'https://', want image, registry://"),
        ({"source": "https://h:port/x"}, "models.0.source: got 'https://h:port/x', want image, registry://"),
        ({"source": "registry://h/small"}, "models.0.source: got 'registry://h/small', want registry://host/namespace/model:tag"),
        ({"source": "file://host/x"}, "models.0.source: got 'file://host/x', want file:///absolute/path"),
        ({"source": "https://h/x", "digest": ""}, "models.0.digest: got nothing, want the sha256 of what https://h/x must deliver"),
        ({"digest": "sha256:12"}, "models.0.digest: got 'sha256:12', want "),
        ({"contextLength": 8192}, "models.0.contextLength: got 8192, want at most fleet.contextLength 4096; raise that"),
        ({"replicas": 2}, "models.0.replicas: got 2, want at most fleet.replicas 1"),
        ({"keepAlive": "soon"}, "models.0.keepAlive: got 'soon', want "),
        (
            {"source": f"{HUB}/a.gguf:main"},
            f"models.0.source: got '{HUB}/a.gguf:main', want huggingface://host/owner/name[/file.gguf]:commit",
        ),
        (
            {"source": f"{HUB}:{COMMIT}"},
            f"models.0.source: got '{HUB}:{COMMIT}', want huggingface://host/owner/name[/file.gguf]:commit with",
        ),
        ({"format": "onnx"}, "models.0.format: got 'onnx', want "),
        (
            {"format": "safetensors", "source": f"{HUB}/a.gguf:{COMMIT}"},
            f"models.0.source: got '{HUB}/a.gguf:{COMMIT}' with format safetensors, want huggingface://host/owner/name:commit, registry://",
        ),
        (
            {"format": "safetensors", "source": "https://h/a.safetensors"},
            "models.0.source: got 'https://h/a.safetensors' with format safetensors, want huggingface://",
        ),
        (
            {"format": "safetensors", "source": f"{HUB}:{COMMIT}", "quantization": "Q4_K_M"},
            "models.0.quantization: got Q4_K_M with format safetensors, want none",
        ),
        (
            {"format": "safetensors", "source": f"{HUB}:{COMMIT}", "replicas": 1},
            "models.0.replicas: got 1 with safetensors, want 0: Ollama loads one GGUF file alone; leave it out",
        ),
        (
            {"source": f"{HUB}/a-00001-of-00003.gguf:{COMMIT}", "replicas": 1},
            "models.0.replicas: got 1 with a split GGUF, want 0: Ollama loads one GGUF file alone; leave it out",
        ),
        ({"source": "https://h/SHA256SUMS", "replicas": 1}, "models.0.replicas: got 1 with a split GGUF, want 0"),
        ({"replicas": 0}, "models: got none that the fleet can hold, want one at least"),
        (NAMED, "delivery.networks: got nothing, want the networks of files.example.com, the source of smollm2:135m"),
    ],
)
def test_a_model_that_cannot_be_delivered_is_refused(model: dict[str, Any], line: str) -> None:
    assert f"modelfleet:{line}" in refusal(models=[{**SMALL, "digest": DIGEST, **model}])


FOR_SERVERS = {"name": "big:1", "size": "200M", "kvBytesPerToken": 23040}


@pytest.mark.parametrize(
    "fields",
    [
        {"replicas": 0},
        {"format": "safetensors", "source": f"huggingface://198.51.100.7/team/big:{COMMIT}"},
        {"format": "safetensors", "source": "registry://198.51.100.7/team/big:1", "digest": DIGEST},
        {"source": f"huggingface://198.51.100.7/team/big/big-00001-of-00002.gguf:{COMMIT}"},
        {"source": "https://198.51.100.7/big/SHA256SUMS", "digest": DIGEST},
    ],
)
def test_a_model_that_the_fleet_cannot_load_is_for_model_servers_alone(fields: dict[str, Any]) -> None:
    config = document()
    config["models"] = [SMALL, FOR_SERVERS | fields]
    with pytest.raises(SettingsError, match=r"models\.1: got big:1 on no replica of the fleet, want a server that has it; add it to"):
        parse(config)


@pytest.mark.parametrize(
    "fields", [{"replicas": 0}, {"source": f"huggingface://198.51.100.7/team/big/big-00001-of-00002.gguf:{COMMIT}"}], ids=["none", "split"]
)
def test_a_model_of_a_model_server_alone_is_no_id_of_the_fleet(fields: dict[str, Any]) -> None:
    """So the server may have its name as its own."""
    config = document()
    config["models"] = [SMALL, FOR_SERVERS | fields]
    config["modelServers"] = [SERVER | {"model": "big:1", "modelId": "big:1"}]
    accepted = parse(config)
    assert [model.name for model in accepted.fleet_models] == ["smollm2:135m"]
    assert accepted.ids == ["smollm2:135m", "big:1"]
    assert list(capacities(accepted)) == accepted.ids


def test_the_claim_of_a_model_server_holds_its_model() -> None:
    large = {"models": [SMALL, FOR_SERVERS | {"size": "1Gi", "replicas": 0}]}
    server = SERVER | {"model": "big:1", "contextLength": 512, "resources": {"cpu": "100m", "memory": "1200Mi"}}
    want = "want at least 1.1Gi for model server model-server, its model and a tenth more; raise it, or set modelServers.0.localSize"
    assert f"modelfleet:storage.hot.size: got 1Gi, {want}" in refusal(**large, modelServers=[server])
    assert f"modelfleet:modelServers.0.localSize: got 1100M, {want}" in refusal(**large, modelServers=[server | {"localSize": "1100M"}])
    config = document() | large
    config["modelServers"] = [server | {"localSize": "1200M"}]
    assert parse(config).model_servers[0].local_size == "1200M"


@pytest.mark.parametrize("source", ["https://me:hunter2@h/x", "https://h/x?token=hunter2"])
def test_a_credential_in_a_source_is_refused_and_not_echoed(source: str) -> None:
    said = refusal(models=[{**SMALL, "source": source, "digest": DIGEST}])
    assert "models.0.source: got a user, a password or a query, want the address alone; put the credential into sourceTokens" in said
    assert "hunter2" not in said


@pytest.mark.parametrize(
    ("bundle", "line"),
    [
        ("not a certificate", "delivery.caBundle: got no certificates, want them as PEM"),
        ("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n", "delivery.caBundle: got no certificates, want them as PEM"),
        ("\u2028\x00", "delivery.caBundle: got no certificates, want them as PEM"),
        ("-----BEGIN PRIVATE KEY-----\nhunter2", "delivery.caBundle: got a private key, want certificates alone"),
    ],
)
def test_an_authority_that_cannot_be_trusted_is_refused(bundle: str, line: str) -> None:
    said = refusal(delivery={"caBundle": bundle})
    assert f"modelfleet:{line}" in said
    assert "hunter2" not in said


def test_an_authority_is_taken_as_pem() -> None:
    config = document()
    config["delivery"] = {"caBundle": "Our own authority\n" + json.loads(verifier_tls("ns"))["certificate"]}
    assert parse(config).delivery.ca_bundle.startswith("Our own authority")


def test_a_named_source_with_its_networks_is_fine() -> None:
    config = document()
    config["models"] = [NAMED]
    config["delivery"] = {"networks": ["198.51.100.0/24"], "rateLimit": "10M"}
    assert parse(config).delivery.networks == ["198.51.100.0/24"]


PROXY = "http://proxy.example.com:3128"


@pytest.mark.parametrize(
    ("delivery", "line"),
    [
        ({"proxy": "proxy.example.com:3128"}, "delivery.proxy: got 'proxy.example.com:3128', want http://HOST:PORT; name a proxy that"),
        ({"proxy": "https://proxy.example.com:3128"}, "delivery.proxy: got 'https://proxy.example.com:3128', want http://HOST:PORT"),
        ({"proxy": "http://proxy.example.com"}, "delivery.proxy: got 'http://proxy.example.com', want http://HOST:PORT"),
        ({"proxy": "http://[fd00::7:3128"}, "delivery.proxy: got 'http://[fd00::7:3128', want http://HOST:PORT"),
        ({"proxy": f"{PROXY}/pac"}, f"delivery.proxy: got '{PROXY}/pac', want http://HOST:PORT"),
        ({"proxy": "http://me:hunter2@proxy.example.com:3128"}, "delivery.proxy: got a user or a password, want http://HOST:PORT alone;"),
        ({"noProxy": ["example.com"]}, "delivery.noProxy: got example.com, want none without proxy"),
        ({"proxy": PROXY, "noProxy": ["*.example.com"]}, "delivery.noProxy.0: got '*.example.com', want "),
        ({"proxy": PROXY}, "delivery.networks: got nothing, want the networks of proxy.example.com, delivery.proxy; list them"),
        (
            {"proxy": "http://10.0.0.7:3128", "noProxy": ["example.com"]},
            "delivery.networks: got nothing, want the networks of files.example.com, the source of smollm2:135m",
        ),
    ],
)
def test_a_proxy_that_cannot_be_used_is_refused(delivery: dict[str, Any], line: str) -> None:
    said = refusal(models=[NAMED], delivery=delivery)
    assert f"modelfleet:{line}" in said
    assert "hunter2" not in said


@pytest.mark.parametrize(
    ("source", "delivery", "reached"),
    [
        ("https://files.example.com/m", {"proxy": "http://10.0.0.7:3128"}, [("10.0.0.7", 3128)]),
        ("https://files.example.com/m", {"proxy": "http://[fd00::7]:3128"}, [("fd00::7", 3128)]),
        ("registry://198.51.100.7/team/m:1", {"proxy": "http://10.0.0.7:3128"}, [("10.0.0.7", 3128), ("198.51.100.7", 443)]),
        ("image", {"proxy": "http://10.0.0.7:3128"}, []),
        (
            "https://files.example.com/m",
            {"proxy": PROXY, "noProxy": ["example.com"], "networks": ["10.0.0.0/8"]},
            [("proxy.example.com", 3128), ("files.example.com", 443)],
        ),
    ],
)
def test_the_writer_reaches_the_proxy_in_place_of_what_it_leads_to(
    source: str, delivery: dict[str, Any], reached: list[tuple[str, int]]
) -> None:
    config = document()
    config["models"] = [{**NAMED, "source": source, "digest": "" if source == "image" else DIGEST}]
    config["delivery"] = delivery
    assert parse(config).writer_reaches == reached


def test_models_on_some_replicas_need_room_only_there() -> None:
    """Two of them do not fit on one GPU, but each replica holds one."""
    config = document(FLEET)
    config["models"] = [{**config["models"][0], "name": f"m{index}:1", "replicas": 1} for index in range(2)]
    config["modelServers"][0]["model"] = "m0:1"
    config["fleet"] |= {"contextLength": 16384}
    settings = parse(config)
    held = [[model.name for model in settings.models if is_held_by(model.name, 1, 3, ordinal)] for ordinal in range(3)]
    assert max(len(names) for names in held) == 1, held
    for model in config["models"]:
        del model["replicas"]
    config["fleet"]["contextLength"] = 65536
    with pytest.raises(SettingsError, match=r"of GPU memory for m0:1, m1:1"):
        parse(config)


@pytest.mark.parametrize(
    ("cluster", "gpu", "names"),
    [
        ({}, {}, ("local-nvme", "shared-models", "nvidia", "x")),
        ({"namespace": "team-b"}, {}, ("team-b-local-nvme", "team-b-shared-models", "team-b-nvidia", "team-b-x")),
        ({"namespace": "team-b", "prefix": ""}, {}, ("local-nvme", "shared-models", "nvidia", "x")),
        ({"prefix": "b-"}, {"createRuntimeClass": False}, ("b-local-nvme", "b-shared-models", "nvidia", "b-x")),
        ({"prefix": "b-"}, {"runtimeClass": "gpu"}, ("b-local-nvme", "b-shared-models", "gpu", "b-x")),
    ],
)
def test_what_is_outside_of_the_namespace_bears_the_fleets_name(
    cluster: dict[str, Any], gpu: dict[str, Any], names: tuple[str, ...]
) -> None:
    config = document()
    config["cluster"] |= cluster
    config["gpu"] = {**config.get("gpu", {}), **gpu}
    found = parse(config)
    assert (found.hot_class, found.shared_class, found.runtime_class, found.cluster.wide("x")) == names


def test_a_class_that_is_there_is_taken_by_name() -> None:
    config = document()
    config["storage"]["hot"] = {"className": "fast", "size": config["storage"]["hot"]["size"]}
    assert parse(config).hot_class == "fast"


def test_signed_images_are_built_before_they_are_deployed() -> None:
    trust = {"publicKeys": "-----BEGIN PUBLIC KEY-----"}
    for builder in ("docker-build", "docker"):
        line = f"modelfleet:images.builder: got {builder} with trust, want prebuilt, since nobody would have signed what an update builds; build"
        assert refusal(images={"builder": builder, "refs": {}, "trust": trust}).startswith(line)


def test_production_builds_on_no_base_without_a_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    prod = parse(document("prod"))
    monkeypatch.setattr(pins, "bases", lambda _=None: {"python": {"digest": ""}, "debian": {"digest": f"sha256:{'0' * 64}"}})
    wanted = (
        r"^modelfleet:images.builder: got docker-build, and no digest of python in images/pins.toml, want each by digest in production; run"
    )
    with pytest.raises(SettingsError, match=wanted):
        foundations.check_bases(prod)
    monkeypatch.setattr(pins, "bases", lambda _=None: {"python": {"digest": f"sha256:{'0' * 64}"}})
    foundations.check_bases(prod)


def test_a_builder_makes_what_the_stack_runs_and_no_more() -> None:
    fleet = parse(document(FLEET))
    assert set(foundations.built(fleet)) == {*IMAGE_NAMES, *BASE_NAMES}
    assert set(foundations.built(fleet.model_copy(update={"gpu": GpuSettings()}))) == set(IMAGE_NAMES)
    assert set(foundations.built(parse(document("prod")))) == {*IMAGE_NAMES, *BASE_NAMES, VLLM_IMAGE}


POOL: dict[str, Any] = {
    "url": "https://models.example.com/v1",
    "networks": ["203.0.113.0/24"],
    "models": [{"id": "large", "contextLength": 131072}],
}


def test_a_pool_of_others_has_an_id_that_aliases_may_lead_to() -> None:
    config = document()
    config["externalPools"] = {"cloud": POOL, "near": POOL | {"url": "http://10.1.2.3:8000/v1", "networks": [], "models": [
        {"id": "near", "contextLength": 4096}]}}  # fmt: skip
    config["aliases"] = {"coder": {"model": "large"}}
    settings = parse(config)
    cloud, near = settings.external_pools.values()
    assert (cloud.port, cloud.cidrs) == (443, ["203.0.113.0/24"])
    assert (near.port, near.cidrs) == (8000, ["10.1.2.3/32"])
    assert settings.ids[-2:] == ["large", "near"]


@pytest.mark.parametrize(
    ("pool", "line"),
    [
        (
            {"url": "https://me:hunter2@h/v1"},
            "url: got a user, a password or a query, want the address alone; put the key into externalKeys",
        ),
        ({"url": "https://h/v1?key=hunter2"}, "url: got a user, a password or a query, want the address alone"),
        (
            {"url": "models.example.com"},
            "url: got 'models.example.com', want https://HOST[:PORT][/PATH] without a slash at its end; correct it",
        ),
        ({"url": "https://models.example.com/v1/"}, "url: got 'https://models.example.com/v1/', want https://HOST"),
        ({"url": "https://models.example.com:99999/v1"}, "url: got 'https://models.example.com:99999/v1', want https://HOST"),
        (
            {"url": "http://169.254.169.254/latest"},
            "url: got 169.254.169.254, want another machine than the one that asks; name the pool's",
        ),
        ({"url": "http://[::ffff:169.254.169.254]/latest"}, "url: got ::ffff:169.254.169.254, want another machine"),
        ({"url": "http://localhost:8000/v1"}, "url: got localhost, want another machine"),
        ({"url": "http://127.0.0.1:8000/v1"}, "url: got 127.0.0.1, want another machine"),
        ({"url": "http://[fd00:ec2::254]/v1"}, "url: got fd00:ec2::254, want another machine"),
        (
            {"networks": []},
            "networks: got nothing, want the networks of models.example.com, since a network policy cannot name hosts; list them",
        ),
        ({"caBundle": "x"}, "caBundle: got no certificates, want them as PEM"),
        ({"models": []}, "models: got [], want "),
        (
            {"models": [{"id": "smollm2:135m", "contextLength": 4096}]},
            "models.0.id: got smollm2:135m twice, want an id that no other model has",
        ),
        ({"models": [{"id": "large"}]}, "models.0.contextLength: got nothing, want a value"),
        ({"key": "hunter2"}, "key: got an unknown key, want one of"),
    ],
)
def test_a_pool_that_nobody_can_have_is_refused(pool: dict[str, Any], line: str) -> None:
    said = refusal(externalPools={"cloud": POOL | pool})
    assert f"modelfleet:externalPools.cloud.{line}" in said
    assert "hunter2" not in said


def test_two_pools_have_two_urls() -> None:
    assert "externalPools.b.url: got https://models.example.com/v1 twice, want one pool for each url" in refusal(
        externalPools={"a": POOL, "b": POOL | {"models": [{"id": "other", "contextLength": 4096}]}}
    )


@pytest.mark.parametrize(("size", "said"), [(0, "0.0Gi"), (2.25 * 2**20, "2.2Mi"), (60 * 2**20, "0.1Gi"), (12.5 * 2**30, "12.5Gi")])
def test_a_size_is_never_rounded_to_nothing(size: float, said: str) -> None:
    assert in_gib(size) == said
