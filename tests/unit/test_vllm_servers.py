"""A model server of engine vllm: what is refused before anything is made, and with which numbers."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.program import foundations
from infra.program.arguments import routes
from infra.program.settings import Settings, parse, server_memory
from infra.program.settings.capacity import capacities
from infra.program.settings.images import VLLM_IMAGE
from infra.program.settings.section import GIB, SettingsError
from tests.unit.test_settings import FLEET, document

TREE = {"name": "qwen3-8b:bf16", "size": "16Gi", "kvBytesPerToken": 147456, "format": "safetensors"}
"""36 layers, 8 KV heads of 128, bf16."""
SERVER = {
    "name": "chat",
    "engine": "vllm",
    "model": "qwen3-8b:bf16",
    "modelId": "qwen3-8b",
    "gpus": 1,
    "contextLength": 32768,
    "parallel": 4,
    "resources": {"cpu": "8", "memory": "32Gi"},
}


def stack(server: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """FLEET with a server of vLLM beside its own; `changes` are of sections."""
    config = document(FLEET)
    config["models"].append(TREE)
    config["modelServers"].append(SERVER | (server or {}))
    config["governance"] |= {"production": False}
    for name, values in changes.items():
        config[name] = config.get(name, {}) | values if isinstance(values, dict) else values
    return config


def refused(server: dict[str, Any] | None = None, **changes: Any) -> list[str]:
    with pytest.raises(SettingsError) as error:
        parse(stack(server, **changes))
    return str(error.value).splitlines()


def test_it_is_taken_as_it_stands() -> None:
    settings = parse(stack())
    assert isinstance(settings, Settings)
    assert (settings.serving_gpus, settings.gpu_pods) == (4, 4)
    assert VLLM_IMAGE in foundations.built(settings)


PATH = "modelfleet:modelServers.1"


@pytest.mark.parametrize(
    ("server", "changes", "line"),
    [
        ({"gpus": 0}, {}, f"{PATH}.gpus: got 0 with engine vllm, want one at least; set it, or use llama-cpp, which runs on CPUs too"),
        (
            {"model": "qwen3-coder:30b"},
            {},
            f"{PATH}.model: got qwen3-coder:30b, of format gguf, with engine vllm, want safetensors; choose such a model, or engine llama-cpp",
        ),
        (
            {"engine": "llama-cpp", "gpus": 0},
            {},
            f"{PATH}.model: got qwen3-8b:bf16, of format safetensors, with engine llama-cpp, want gguf; choose such a model, or engine vllm",
        ),
        (
            {"engine": "llama-cpp", "gpus": 0, "vllm": {"eager": True}},
            {},
            f"{PATH}.vllm: got a section with engine llama-cpp, want it with engine vllm; remove it, or set engine",
        ),
        (
            {"engine": "llama-cpp", "gpus": 1, "model": "qwen3-coder:30b"},
            {},
            f"{PATH}.gpus: got 1 with engine llama-cpp, want llamaCpp.image, since the image model-server has llama.cpp for CPUs alone; "
            "set it, or use vllm",
        ),
        (
            {"llamaCpp": {"image": f"a@sha256:{'0' * 64}"}},
            {},
            f"{PATH}.llamaCpp: got a section with engine vllm and 1 GPUs, want it with llama-cpp on GPUs; remove it",
        ),
        ({"engine": "tgi"}, {}, f"{PATH}.engine: got 'tgi', want 'llama-cpp' or 'vllm'; correct it (docs/configuration.md)"),
        ({"vllm": {"tensorParallel": 2}}, {}, f"{PATH}.vllm.tensorParallel: got an unknown key, want one of dtype, eager"),
        (
            {},
            {"gpu": {"sharing": {"strategy": "time-slicing", "replicas": 2, "acknowledgeNoIsolation": True}, "memory": "192Gi"}},
            f"{PATH}.engine: got vllm with gpu.sharing time-slicing, want none or mig: vLLM plans for a GPU or a partition of its own; "
            "change gpu.sharing, or use llama-cpp",
        ),
        (
            {"gpus": 2},
            {"gpu": {"sharing": {"strategy": "mig", "profile": "3g.40gb"}, "memory": "81559Mi"}},
            f"{PATH}.gpus: got 2, want at most 1 with gpu.sharing mig; take larger shares",
        ),
        (
            {"gpus": 4, "replicas": 2},
            {},
            "modelfleet:fleet: got 11 GPUs (replicas 3 x gpusPerPod 1, and 8 of modelServers), want at most governance.gpuQuota 8; "
            "raise the quota or lower the fleet",
        ),
        # By hand: 0.9 x 44.99 = 40.5; 16 + 144 KiB x 131072 x 4 = 72, + 1.8 + 2.5 + 1.0.
        (
            {"contextLength": 131072},
            {},
            f"{PATH}.gpus: got 1 with 40.5Gi (0.9 x 45.0Gi a unit by gpu.memory 46068Mi), want 93.3Gi (weights 16.0Gi, KV cache of "
            "contextLength 131072 x parallel 4 72.0Gi, CUDA context, activations and CUDA graphs 5.3Gi); lower modelServers.1.contextLength "
            "or modelServers.1.parallel, or give more GPUs",
        ),
        # Three processes.
        (
            {"resources": {"cpu": "8", "memory": "5Gi"}},
            {},
            f"{PATH}.resources.memory: got 5Gi, want at least 6.0Gi (3 processes 6.0Gi, shared memory 0.0Gi); raise it",
        ),
        (
            {"gpus": 2, "resources": {"cpu": "8", "memory": "8Gi"}},
            {},
            f"{PATH}.resources.memory: got 8Gi, want at least 9.5Gi (4 processes 8.0Gi, shared memory 1.5Gi); raise it",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(server: dict[str, Any], changes: dict[str, Any], line: str) -> None:
    found = refused(server, **changes)
    assert [each for each in found if each.startswith(line)], found


def test_gpus_without_nodes_that_have_some_are_refused() -> None:
    config = document("dev")
    config["models"].append(TREE)
    config["modelServers"].append(SERVER)
    with pytest.raises(SettingsError, match=r"modelServers\.1\.gpus: got 1, want 0 while gpu\.enabled is false"):
        parse(config)


def test_an_image_of_vllm_is_asked_for_where_images_are_not_built() -> None:
    refs = {name: f"r/{name}@sha256:{'0' * 64}" for name in ("ollama", "ollama-agent", "model-sync", "models", "model-server")}
    refs |= {name: f"r/{name}@sha256:{'0' * 64}" for name in ("cache-server", "api-server", "metrics-exporter")}
    assert refused(images={"builder": "prebuilt", "refs": refs}) == [
        f"modelfleet:images.refs.{VLLM_IMAGE}: got nothing, want a reference with a model server of engine vllm; add it, or use llama-cpp"
    ]


def test_layers_are_split_and_what_each_gpu_needs_is_not() -> None:
    """By hand: the weights are there once, the rest once a GPU, and NCCL's where there are two."""
    one, two = (parse(stack({"gpus": gpus})).model_servers[1] for gpus in (1, 2))
    model = parse(stack()).models[1]
    needs = [server_memory.on_gpus(server, model) for server in (one, two)]
    assert [need.weights for need in needs] == [16 * GIB, 16 * GIB]
    assert [need.kv for need in needs] == [147456 * 32768 * 4] * 2
    assert [need.workspace / GIB for need in needs] == pytest.approx([5.3, 14.2])
    eager = parse(stack({"vllm": {"eager": True}})).model_servers[1]
    assert server_memory.on_gpus(eager, model).workspace / GIB == pytest.approx(4.3)


def test_a_cache_in_fp8_holds_twice_as_many_tokens() -> None:
    plain, halved = (capacities(parse(stack({"vllm": {"kvCacheDtype": kind}})))["qwen3-8b"] for kind in ("auto", "fp8"))
    assert (plain.kv_bytes_per_token, halved.kv_bytes_per_token) == (147456, 73728)
    assert halved.tokens == pytest.approx(2 * plain.tokens, abs=2)


def test_the_rest_of_the_cache_keeps_old_prompts_warm() -> None:
    """By hand: 40.49 GiB, without 16 of weights and 5.3 beside them, are 19.19 of cache; 18 are in the slots, each of 4.5."""
    found = capacities(parse(stack()))["qwen3-8b"]
    assert (found.servers, found.slots, found.conversations) == (1, 4, 4)
    assert found.prompt_cache / GIB == pytest.approx(0.9 * 46068 / 1024 - 16 - 5.3 - 18)
    more = capacities(parse(stack({"parallel": 2})))["qwen3-8b"]
    assert (more.slots, more.conversations) == (2, 4), "the same cache, whoever fills it"
    assert routes(parse(stack()))["qwen3-8b"]["cached_tokens"] == found.cached_tokens


def test_the_fleet_has_nothing_of_a_tree() -> None:
    """Ollama runs none: neither its replicas nor its routes know of it, and its memory is not planned for it."""
    settings = parse(stack({"modelId": "qwen3-8b:bf16"}))
    assert [model.name for model in settings.fleet_models] == ["qwen3-coder:30b"]
    assert routes(settings)["qwen3-8b:bf16"]["url"] == "http://model-server-chat:8080"
    assert "qwen3-8b:bf16" in settings.ids
    lines = refused(models=[TREE])
    assert [line for line in lines if "none of format gguf, want one at least, which the fleet serves" in line]


def test_llama_cpp_on_a_gpu_has_all_of_it_there() -> None:
    """By hand: 17.7 GiB of weights, 96 KiB x 32768 x 4 = 12, and 1.5 beside them."""
    server = {"engine": "llama-cpp", "model": "qwen3-coder:30b", "llamaCpp": {"image": f"a@sha256:{'0' * 64}"}}
    models = document(FLEET)["models"]
    settings = parse(stack(server, models=models))
    need = server_memory.on_gpus(settings.model_servers[1], settings.models[0])
    assert (need.weights + need.kv + need.workspace) / GIB == pytest.approx(19e9 / GIB + 12 + 1.5)
    (line,) = refused(server | {"contextLength": 131072}, models=models)
    assert "got 1 with 45.0Gi (45.0Gi a unit by gpu.memory 46068Mi), want 67.2Gi" in line


def test_the_example_in_the_docs_is_one() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "engines.md").read_text()
    example, image = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL))
    config = document(FLEET)
    config["governance"] |= {"production": False}
    config["fleet"] |= {"contextLength": 32768}
    for name, values in example.items():
        config[name.removeprefix("modelfleet:")] = values
    settings = parse(config)
    (server,) = (each for each in settings.model_servers if each.engine == "vllm")
    assert capacities(settings)[server.model_id].conversations >= server.parallel
    # The second is a part of a server.
    config["models"] = [model for model in config["models"] if model.get("format") != "safetensors"]
    pinned = {"image": image["llamaCpp"]["image"].replace("…", "0" * 64)}
    config["modelServers"][0] = SERVER | {"engine": "llama-cpp", "model": "coder:30b", "gpus": image["gpus"], "llamaCpp": pinned}
    assert parse(config).model_servers[0].llama_cpp is not None
