"""The engine's process where it is vLLM: `python -m model_server.vllm PARAMETERS`. Prints one JSON line that says where it will answer,
and becomes vLLM's own OpenAI server.

Its Python is another one: vLLM pins packages that ours has in other versions.
"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_server import child

VERSION = "0.32.0"
"""Whose command line and endpoints are written down here: the newest that also has a build for CPUs, which the proof `vllm` runs."""
MODULE = "vllm.entrypoints.launchers.api_server.entry"
_OF_OURS = ("PYTHONPATH", "PYTHONHOME")


def main() -> int:
    announce = child.begin()
    if announce is None:
        return 1
    given, port = json.loads(sys.argv[1]), child.free_port()
    child.say(announce, f"http://127.0.0.1:{port}")
    child.become(command(given, port), environment(os.environ, given["python"], given["home"], tier=bool(given["tier_dir"])))
    return 1


def command(given: Mapping[str, Any], port: int) -> list[str]:
    """vLLM's command line. Source: vllm/engine/arg_utils.py and vllm/entrypoints/launchers/cli_args.py of VERSION, from which
    tests/contract/vllm-flags.json is made."""
    pairs = {
        "--model": given["model"],
        "--served-model-name": given["alias"],
        "--host": "127.0.0.1",
        "--port": port,
        "--max-model-len": given["context"],
        "--max-num-seqs": given["parallel"],
        "--tensor-parallel-size": given["tensor_parallel"],
        "--gpu-memory-utilization": given["gpu_memory_utilization"],
        "--dtype": given["dtype"],
        "--kv-cache-dtype": given["kv_cache_dtype"],
        # Requests carry no defaults of the model's: an answer depends on what was asked, as with the other engine.
        "--generation-config": "vllm",
        "--uvicorn-log-level": "warning",
    }
    optional = {"--quantization": given["quantization"], "--reasoning-parser": given["reasoning_parser"]}
    pairs |= {flag: value for flag, value in optional.items() if value}
    switches = ["--enable-prefix-caching", "--enable-prompt-tokens-details", "--disable-uvicorn-access-log"]
    if given["tool_call_parser"]:
        pairs["--tool-call-parser"] = given["tool_call_parser"]
        switches.append("--enable-auto-tool-choice")
    if given["enforce_eager"]:
        switches.append("--enforce-eager")
    if given["offload_mib"]:
        pairs["--kv-transfer-config"] = json.dumps(_offloading(given["offload_mib"], given["tier_dir"]))
    return [given["python"], "-m", MODULE, *child.flags(pairs, switches)]


def _offloading(mib: int, tier_dir: str) -> dict[str, Any]:
    """Old prompts in host memory, and what leaves that in files. Source: vllm/v1/kv_offload/tiering/spec.py of VERSION."""
    more: dict[str, Any] = {"cpu_bytes_to_use": mib * 2**20}
    if tier_dir:
        tier = {"type": "BoundedFileTier", "module_path": "model_server.tier.vllm_tier", "root_dir": tier_dir}
        more |= {"spec_name": "TieringOffloadingSpec", "secondary_tiers": [tier]}
    return {"kv_connector": "OffloadingConnector", "kv_role": "kv_both", "kv_connector_extra_config": more}


def environment(ours: Mapping[str, str], python: str, home: str, *, tier: bool = False) -> dict[str, str]:
    """What vLLM runs with: nothing is looked for or reported on the network, its caches are in one directory, and it finds the programs
    beside its `python`. `tier`: it has to find a module of this package, which imports nothing but Python's own library.

    Source: vllm/envs.py of VERSION, and huggingface_hub's page on environment variables.
    """
    kept = {name: value for name, value in ours.items() if name not in _OF_OURS}
    kept |= {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)} if tier else {}
    return kept | {
        # ninja, with which FlashInfer compiles.
        "PATH": os.pathsep.join([str(Path(python).parent), *filter(None, [ours.get("PATH")])]),
        # Each compiler takes gigabytes; unsaid, there are as many as the node has cores.
        "MAX_JOBS": "4",
        # That of PyTorch and Triton needs no kernel that is compiled for minutes at the first start.
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        # PyTorch's Gloo, between the workers, listens where the machine's name leads to, which is a pod's own address.
        "GLOO_SOCKET_IFNAME": "lo",
        "VLLM_CACHE_ROOT": home,
        # Triton's, FlashInfer's and CUDA's caches are below the home, and PyTorch asks for a user's name: a number has none.
        "HOME": home,
        "USER": "vllm",
        "OMP_WAIT_POLICY": ours.get("OMP_WAIT_POLICY", "passive"),
    }


if __name__ == "__main__":
    sys.exit(main())
