"""The configuration is checked as a whole, and every refusal says what to do."""

import copy
from typing import Any

import pytest

from infra.preview import stack_config
from infra.settings import IMAGE_NAMES, Settings, SettingsError, parse, quantity

REFS = {name: f"modelfleet/{name}@sha256:{'a' * 64}" for name in IMAGE_NAMES}


def document(stack: str = "dev") -> dict[str, Any]:
    config = {name.removeprefix("modelfleet:"): value for name, value in stack_config(stack).items()}
    config["cluster"] = {"context": "somewhere", "identity": "3f1c"}
    config.setdefault("images", {"refs": REFS})
    return copy.deepcopy(config)


def refusal(**sections: Any) -> str:
    config = document(sections.pop("stack", "dev"))
    for section, values in sections.items():
        config[section] = {**config.get(section, {}), **values}
    with pytest.raises(SettingsError) as error:
        parse(config)
    return str(error.value)


@pytest.mark.parametrize("stack", ["dev", "prod"])
def test_the_committed_stacks_are_valid(stack: str) -> None:
    assert isinstance(parse(document(stack)), Settings)


def test_prod_has_the_sizes_of_the_design() -> None:
    settings = parse(document("prod"))
    assert (settings.fleet.replicas, settings.fleet.gpus_per_pod, settings.governance.gpu_quota) == (3, 1, 8)
    assert (settings.storage.shared.size, settings.storage.hot.size, settings.cache.max_memory) == ("1Ti", "100Gi", "50Gi")


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"fleet": {"replicas": 0}}, "modelfleet:fleet.replicas: got 0, want greater than or equal to 1; correct it"),
        ({"fleet": {"replicsa": 1}}, "modelfleet:fleet.replicsa: got an unknown key, want one of contextLength,"),
        (
            {"fleet": {"resources": {"cpu": "1", "memry": "1Gi"}}},
            "modelfleet:fleet.resources.memry: got an unknown key, want one of cpu, memory",
        ),
        (
            {"fleet": {"resources": {"cpu": "much", "memory": "1Gi"}}},
            "modelfleet:fleet.resources.cpu: got 'much', want a Kubernetes quantity",
        ),
        ({"fleet": {"gpusPerPod": 1}}, "modelfleet:fleet.gpusPerPod: got 1, want 0 while gpu.enabled is false"),
        ({"stack": "prod", "fleet": {"replicas": 9}}, "modelfleet:fleet: got 9 GPUs (replicas 9 x gpusPerPod 1), want at most"),
        ({"fleet": {"models": ["a:b", "a:b"]}}, "modelfleet:fleet.models: got a:b, a:b, want each name once"),
        ({"fleet": {"models": ["untagged"]}}, "modelfleet:fleet.models.0: got 'untagged', want"),
        ({"modelServer": {"model": "other:1"}}, "modelfleet:modelServer.model: got other:1, want one of fleet.models smollm2:135m"),
        (
            {"modelServer": {"modelId": "smollm2:135m"}},
            "modelfleet:modelServer.modelId: got smollm2:135m, want an id that no fleet model has",
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
        ({"images": {"refs": {}}}, "modelfleet:images.refs.ollama: got nothing, want a reference for ollama, models"),
        ({"images": {"builder": "docker-build"}}, "modelfleet:images.refs: got references, want none with builder docker-build"),
        ({"images": {"builder": "podman"}}, "modelfleet:images.builder: got 'podman', want 'prebuilt', 'docker-build' or 'docker'"),
        ({"flete": {}}, "modelfleet:flete: got an unknown key, want one of apiServer, cache,"),
    ],
)
def test_a_wrong_value_is_refused_with_its_path_and_the_remedy(sections: dict[str, Any], line: str) -> None:
    assert line in refusal(**sections)


def test_all_problems_are_reported_at_once() -> None:
    lines = refusal(fleet={"replicas": 0}, cache={"evictionPolicy": "random"}).splitlines()
    assert [line.split(":")[1].split(".")[0] for line in lines] == ["fleet", "cache"]


def test_a_missing_section_is_named() -> None:
    config = document()
    del config["storage"]
    with pytest.raises(SettingsError, match=r"modelfleet:storage: got nothing, want a value"):
        parse(config)


@pytest.mark.parametrize(("text", "value"), [("100m", 0.1), ("2", 2), ("1.5Gi", 1.5 * 2**30), ("1k", 1000)])
def test_quantities(text: str, value: float) -> None:
    assert quantity(text) == pytest.approx(value)
