"""The section `cache`: what an engine cannot do is refused before anything is made, and what tiers take is counted."""

from typing import Any

import pytest

from infra.program.settings import parse
from infra.program.settings.capacity import capacities
from infra.program.settings.section import GIB, SettingsError
from tests.unit.test_settings import document
from tests.unit.test_vllm_servers import stack

VLLM = "modelfleet:modelServers.1"


def refused(config: dict[str, Any]) -> list[str]:
    with pytest.raises(SettingsError) as error:
        parse(config)
    return str(error.value).splitlines()


def dev(**cache: Any) -> dict[str, Any]:
    config = document("dev")
    config["cache"] |= cache
    return config


def prod(server: dict[str, Any] | None = None, **cache: Any) -> dict[str, Any]:
    """Production, with a server of vLLM."""
    config = stack(server)
    config["cache"] |= cache
    config["governance"] |= {"storage": "10Ti", "claims": 60}
    return config


@pytest.mark.parametrize(
    ("cache", "line"),
    [
        ({"compression": True}, "modelfleet:cache.compression: got true, want false: keys and values shrink by a tenth at most"),
        ({"metricsEnabled": False}, "modelfleet:cache.metricsEnabled: got False, want true"),
        ({"sharedCache": True}, "modelfleet:cache.maxSize: got nothing with sharedCache, want the size of the shared tier; set it"),
        ({"maxSize": "1Gi", "sharedCache": True}, "modelfleet:cache.sharedCache: got true, want a model server with vLLM"),
        (
            {"maxSize": "1Gi", "evictionPolicy": "allkeys-lfu"},
            "modelfleet:cache.evictionPolicy: got allkeys-lfu with maxSize, want lru, which all tiers have; set that",
        ),
        ({"maxSize": "900Gi"}, "modelfleet:governance.storage: got"),
    ],
)
def test_what_cannot_be_had_is_refused(cache: dict[str, Any], line: str) -> None:
    assert any(each.startswith(line) for each in refused(dev(**cache))), refused(dev(**cache))


def test_vllm_needs_host_memory_before_its_disk() -> None:
    assert refused(prod(maxSize="50Gi")) == [
        f"{VLLM}.promptCache: got nothing with cache.maxSize, want host memory, through which vLLM's blocks come to the disk and back; set it"
    ]
    settings = parse(prod({"promptCache": "8Gi"}, maxSize="50Gi"))
    more = capacities(settings)["qwen3-8b"].prompt_cache - capacities(parse(prod()))["qwen3-8b"].prompt_cache
    assert more == pytest.approx(8 * GIB)


def test_host_memory_of_vllm_is_counted_into_its_pod() -> None:
    [line] = refused(prod({"promptCache": "64Gi"}))
    assert line.startswith(f"{VLLM}.resources.memory: got 32Gi, want at least ")
    assert "promptCache 64.0Gi" in line


def test_a_shared_tier_needs_a_class() -> None:
    config = prod({"promptCache": "8Gi"}, maxSize="50Gi", sharedCache=True)
    parse(config)
    config["storage"]["shared"] = {"size": config["storage"]["shared"]["size"], "claim": "ours"}
    config["cluster"]["take"] = ["Namespace/modelfleet"]
    assert any(line.startswith("modelfleet:cache.sharedCache: got true with storage.shared.claim") for line in refused(config))


@pytest.mark.parametrize(("policy", "valkeys"), [("lru", "allkeys-lru"), ("allkeys-lru", "allkeys-lru"), ("noeviction", "noeviction")])
def test_the_designs_lru_is_a_policy_of_the_cache_server(policy: str, valkeys: str) -> None:
    assert parse(dev(evictionPolicy=policy)).cache.server_policy == valkeys
