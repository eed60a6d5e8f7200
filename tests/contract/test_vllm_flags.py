"""Everything that we render for vLLM is known to the command line of the pinned version (tests/vllm_flags.py reads it from the wheel)."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from model_server import vllm
from model_server.engines import Vllm
from model_server.settings import Settings
from tests.vllm_flags import KEPT

KNOWN: dict[str, Any] = json.loads(KEPT.read_text())
FEW: dict[str, Any] = {}
ALL = {
    "quantization": "fp8",
    "kv_cache_dtype": "fp8",
    "tool_call_parser": "hermes",
    "reasoning_parser": "qwen3",
    "enforce_eager": True,
    "tensor_parallel": 4,
    "dtype": "bfloat16",
    "offload_mib": 8192,
    "tier_dir": "/cache/tier",
}


def rendered(tmp_path: Any, **changes: Any) -> list[str]:
    """What a server with these settings starts, as the child gets it."""
    engine = Vllm(tmp_path, Settings(engine="vllm", model="a/b:1", **changes))
    return vllm.command(json.loads(json.dumps(engine.parameters)), 1234)


def test_the_list_is_of_the_pinned_version() -> None:
    assert KNOWN["version"] == vllm.VERSION
    assert f"vllm-{vllm.VERSION}-" in KNOWN["wheel"]
    assert len(KNOWN["sha256"]) == 64
    # A list that was cut would let a flag through only by refusing it; one that is too long would hide one.
    assert 250 < len(KNOWN["flags"]) < 500


@pytest.mark.parametrize("settings", [FEW, ALL], ids=["defaults", "everything"])
def test_every_flag_is_known(tmp_path: Any, settings: dict[str, Any]) -> None:
    argv = rendered(tmp_path, **settings)
    found = [part for part in argv if part.startswith("--")]
    assert len(found) >= 12
    assert [flag for flag in found if flag not in KNOWN["flags"]] == []
    assert len(set(found)) == len(found)


def test_a_flag_that_it_does_not_know_would_be_seen() -> None:
    assert "--max-model-length" not in KNOWN["flags"]
    assert "--max-model-len" in KNOWN["flags"]


@pytest.mark.parametrize("settings", [FEW, ALL], ids=["defaults", "everything"])
def test_values_of_choices_are_known(tmp_path: Any, settings: dict[str, Any]) -> None:
    argv = rendered(tmp_path, **settings)
    given = {flag: value for flag, value in itertools.pairwise(argv) if flag in KNOWN["choices"]}
    assert len(given) >= 2
    assert [(flag, value) for flag, value in given.items() if value not in KNOWN["choices"][flag]] == []


def test_it_listens_on_loopback_alone_and_asks_nobody(tmp_path: Any) -> None:
    argv = rendered(tmp_path)
    assert argv[argv.index("--host") + 1] == "127.0.0.1"
    ours = {"PATH": "/bin", "PYTHONPATH": "/opt/site-packages:/app", "OMP_WAIT_POLICY": "active"}
    found = vllm.environment(ours, "/opt/python/bin/python", "/cache")
    assert "PYTHONPATH" not in found, "our packages are of other versions"
    assert Path(vllm.environment({}, "python", "/cache", tier=True)["PYTHONPATH"], "model_server", "tier", "vllm_tier.py").exists()
    assert (found["HF_HUB_OFFLINE"], found["VLLM_NO_USAGE_STATS"]) == ("1", "1")
    assert (found["VLLM_HOST_IP"], found["GLOO_SOCKET_IFNAME"]) == ("127.0.0.1", "lo")
    assert found["OMP_WAIT_POLICY"] == "active"
    assert found["PATH"] == "/opt/python/bin:/bin", "what its packages run lies beside its Python"
    assert "--trust-remote-code" not in argv, "nothing of a model is run"


def test_what_is_not_set_is_not_said(tmp_path: Any) -> None:
    assert not {"--quantization", "--tool-call-parser", "--enable-auto-tool-choice", "--reasoning-parser"} & {*rendered(tmp_path)}


def test_old_prompts_go_to_host_memory_and_then_to_files(tmp_path: Any) -> None:
    def configured(**settings: Any) -> dict[str, Any]:
        argv = rendered(tmp_path, **settings)
        return json.loads(argv[argv.index("--kv-transfer-config") + 1])

    assert configured(offload_mib=2)["kv_connector_extra_config"] == {"cpu_bytes_to_use": 2 * 2**20}
    [tier] = configured(offload_mib=2, tier_dir="/cache/tier")["kv_connector_extra_config"]["secondary_tiers"]
    assert tier == {"type": "BoundedFileTier", "module_path": "model_server.tier.vllm_tier", "root_dir": "/cache/tier"}
    assert "--kv-transfer-config" not in rendered(tmp_path)
