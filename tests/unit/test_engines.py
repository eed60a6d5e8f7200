"""What differs between engines, without one of them: refusals, counts, abilities, and trees of files in a store."""

import asyncio
import contextlib
import json
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from model_server.cache import apart
from model_server.engines import LlamaCpp, Vllm, engine_of
from model_server.metrics import Metrics
from model_server.saved import Tokens
from model_server.settings import Settings
from model_server.store import StoreError, find_gguf, find_tree
from model_server.vllm import command
from model_sync import tree
from model_sync.store import StoreError as WriterError

SETTINGS = Settings(engine="vllm", model="a:1", context_length=2048, tool_call_parser="hermes")
METRICS = """
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a"} %s
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="a"} 0.0
# TYPE vllm:iteration_tokens_total histogram
vllm:iteration_tokens_total_bucket{engine="0",le="+Inf",model_name="a"} %s
vllm:iteration_tokens_total_count{engine="0",model_name="a"} %s
vllm:iteration_tokens_total_sum{engine="0",model_name="a"} 9.0
# TYPE vllm:prompt_tokens counter
vllm:prompt_tokens_total{engine="0",model_name="a"} 100.0
# TYPE vllm:prompt_tokens_cached counter
vllm:prompt_tokens_cached_total{engine="0",model_name="a"} 60.0
# TYPE vllm:prompt_tokens_cached_by_source counter
vllm:prompt_tokens_cached_by_source_total{engine="0",model_name="a",source="device"} 30.0
vllm:prompt_tokens_cached_by_source_total{engine="0",model_name="a",source="host"} 20.0
vllm:prompt_tokens_cached_by_source_total{engine="0",model_name="a",source="disk"} 10.0
# TYPE vllm:request_prefill_time_seconds histogram
vllm:request_prefill_time_seconds_bucket{engine="0",le="+Inf",model_name="a"} 3.0
vllm:request_prefill_time_seconds_count{engine="0",model_name="a"} 3.0
vllm:request_prefill_time_seconds_sum{engine="0",model_name="a"} %s
# TYPE vllm:request_prefill_kv_computed_tokens histogram
vllm:request_prefill_kv_computed_tokens_bucket{engine="0",le="+Inf",model_name="a"} 3.0
vllm:request_prefill_kv_computed_tokens_count{engine="0",model_name="a"} 3.0
vllm:request_prefill_kv_computed_tokens_sum{engine="0",model_name="a"} 40.0
# TYPE vllm:generation_tokens counter
vllm:generation_tokens_total{engine="0",model_name="a"} 7.0
"""


def said(message: Any, status: int = 400) -> dict[str, Any]:
    """vLLM's error in our form."""
    body = json.dumps({"error": {"message": message, "type": "BadRequestError", "param": None, "code": status}}).encode()
    return Vllm(Path("w"), SETTINGS).refusal(status, body).body("openai")["error"]


@pytest.mark.parametrize(
    ("message", "got", "limit"),
    [
        # vllm/renderers/params.py and vllm/entrypoints/openai/responses/serving.py, 0.32.0.
        (
            "This model's maximum context length is 2048 tokens. However, your prompt contains 2100 input tokens, which exceeds this limit "
            "even without any output tokens. Please reduce the length of the input prompt.",
            "2100 tokens",
            2048,
        ),
        (
            "This model's maximum context length is 2048 tokens. However, you requested 100 output tokens and your prompt contains at least "
            "1949 input tokens, for a total of at least 2049 tokens. Please reduce the length of the input prompt or the number of requested "
            "output tokens.",
            "1949 tokens",
            2048,
        ),
        (
            "This model's maximum context length is 2048 tokens. However, your prompt contains 99999 characters (more than 9000 characters, "
            "which is the upper bound for 2047 input tokens). Please reduce the length of the input prompt.",
            "99999 characters",
            2048,
        ),
        ("The engine prompt length 3000 exceeds the max_model_len 2048. Please reduce prompt.", "3000 tokens", 2048),
    ],
)
def test_vllms_refusals_of_long_prompts_become_the_sentences_that_agents_know(message: str, got: str, limit: int) -> None:
    error = said(message)
    assert error["code"] == "context_length_exceeded"
    assert error["message"].startswith(
        f"prompt is too long: {got} > {limit} maximum. This model's maximum context length is {limit} tokens."
    )


def test_other_errors_are_in_vllms_words() -> None:
    assert said("temperature must be non-negative, got -1.0.") == {
        "message": "temperature must be non-negative, got -1.0.",
        "type": "invalid_request_error",
        "code": "BadRequestError",
        "param": None,
    }


@pytest.mark.parametrize("body", [b"", b"no JSON", b"[]", b'{"error": 1}', b'{"error": {}}', b"[" * 100_000])
def test_an_answer_of_another_form_is_a_failure_of_the_engine(body: bytes) -> None:
    error = Vllm(Path("w"), SETTINGS).refusal(500, body)
    assert error.status in (500, 502)


@contextlib.asynccontextmanager
async def pretending(texts: list[str], paths: dict[str, Any] | None = None) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
    """An engine's metrics, one text after the other, and the document of its endpoints."""

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(text=texts.pop(0) if len(texts) > 1 else texts[0])

    async def openapi(_: web.Request) -> web.Response:
        return web.json_response({"paths": paths or {}})

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/openapi.json", openapi)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    async with aiohttp.ClientSession() as session:
        yield session, f"http://{host}:{port}"
    await runner.cleanup()


def test_vllm_works_while_it_counts_steps_or_has_nothing_to_do() -> None:
    async def judged() -> list[bool]:
        texts = [METRICS % (running, steps, steps, 0.5) for running, steps in ((1, 5), (1, 6), (1, 6), (1, 6), (0, 6), (1, 7))]
        engine = Vllm(Path("w"), SETTINGS)
        async with pretending(texts) as (session, url):
            return [await engine._works(session, url, 5) for _ in range(6)]

    assert asyncio.run(judged()) == [True, True, False, False, True, True]


@pytest.mark.parametrize(("said_s", "seconds"), [(0.5, 0.5), ("NaN", 0.0), ("+Inf", 0.0), (-3.0, -3.0)])
def test_vllm_counts_tokens_by_itself(said_s: object, seconds: float) -> None:
    async def counted() -> Tokens | None:
        engine = Vllm(Path("w"), SETTINGS)
        async with pretending([METRICS % (0, 1, 1, said_s)]) as (session, url):
            assert await engine.tokens() is None, "it has not begun"
            engine._session, engine._url = session, url
            return await engine.tokens()

    found = asyncio.run(counted())
    assert found == Tokens(read=40, reused=60, written=7, host=20, disk=10, reads=3, timed=40, seconds=seconds)
    assert found is not None
    metrics = Metrics(2048)
    for _ in range(2):
        metrics.reached(found)
        metrics.saved.settle()
    value = metrics.registry.get_sample_value
    assert [value(f"model_server_{name}_tokens_total") for name in ("prompt", "generated")] == [40, 7]
    tiers = [value("model_server_reused_prompt_tokens_total", {"tier": tier}) for tier in ("engine", "host", "disk")]
    assert tiers == [30, 20, 10]


@pytest.mark.parametrize(
    ("paths", "found"),
    [
        ({"/v1/chat/completions": {}, "/v1/completions": {}}, {"completion", "tools"}),
        ({"/v1/completions": {}}, {"completion"}),
        ({"/v1/embeddings": {}}, set[str]()),
    ],
)
def test_what_a_model_can_do_is_what_vllm_has_paths_for(paths: dict[str, Any], found: set[str]) -> None:
    async def asked() -> frozenset[str]:
        async with pretending([""], paths) as (session, url):
            return await Vllm(Path("w"), SETTINGS)._ask(session, url)

    assert asyncio.run(asked()) == found


def test_what_vllm_keeps_is_found_by_the_same_weights_and_the_same_way_to_compute_alone(model: Path, tmp_path: Path) -> None:
    """It names its files of a prompt's state by the path of the model, and by nothing else that tells one from another of that size."""
    store = tmp_path / "store"

    def paths(**changes: str) -> tuple[str, str]:
        given = SETTINGS.model_copy(update={"models_dir": store, "weights_dir": tmp_path / "weights", **changes})
        engine, digest = engine_of(given)
        line = command({**engine.parameters, "tier_dir": ""}, 1)
        return line[line.index("--model") + 1], engine.answers_as(digest)

    tree.add("a:1", model, store)
    first = paths()
    assert paths() == first
    other = [paths(**changes) for changes in ({"kv_cache_dtype": "fp8"}, {"quantization": "fp8"}, {"dtype": "float16"})]
    parser = paths(tool_call_parser="llama3_json")
    assert (parser[0], parser[1] == first[1]) == (first[0], False), "another answer, of the same numbers"
    safetensors(model / "model.safetensors", data=b"\1" * 8)
    tree.add("a:1", model, store)
    other.append(paths())
    for index in (0, 1):
        assert len({first[index], *(each[index] for each in other)}) == 5
    assert all(Path(each, "config.json").is_file() for each, _ in (first, *other))


def test_the_two_have_the_same_endpoints_and_say_what_each_needs() -> None:
    assert LlamaCpp.endpoints.keys() == Vllm.endpoints.keys()
    assert (LlamaCpp.endpoints["/tokenize"].required, Vllm.endpoints["/tokenize"].required) == ("content", "prompt")


def safetensors(path: Path, *, length: int | None = None, data: bytes = b"\0" * 8, end: int = 8) -> Path:
    head = json.dumps({"__metadata__": {}, "w": {"dtype": "F32", "shape": [2], "data_offsets": [0, end]}}).encode()
    path.write_bytes(struct.pack("<Q", len(head) if length is None else length) + head + data)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    found = tmp_path / "model"
    (found / "sub").mkdir(parents=True)
    (found / "config.json").write_text("{}")
    (found / "sub" / "tokenizer.json").write_text("[]")
    for left_out in ("modeling.py", "weights.bin", ".hidden.json", "pickle.pt"):
        (found / left_out).write_text("x")
    safetensors(found / "model.safetensors")
    return found


def test_a_tree_comes_out_of_a_store_as_it_went_in_without_what_could_run(model: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    tree.add("a:1", model, store)
    found, digest = find_tree(store, "a:1", tmp_path / "weights")
    files = {path.relative_to(found).as_posix(): path.read_bytes() for path in found.rglob("*") if path.is_file()}
    assert files.keys() == {"config.json", "sub/tokenizer.json", "model.safetensors"}
    assert files["model.safetensors"] == (model / "model.safetensors").read_bytes()
    tree.add("b:1", model, tmp_path / "other")
    assert find_tree(tmp_path / "other", "b:1", tmp_path / "again")[1] == digest, "the digest is of the files"
    # A second start finds the links of the first.
    assert find_tree(store, "a:1", tmp_path / "weights")[0] == found


def test_each_engine_says_what_it_cannot_run(model: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    tree.add("a:1", model, store)
    with pytest.raises(StoreError, match="got no GGUF layer, want one; this engine runs GGUF models"):
        find_gguf(store, "a:1", tmp_path / "weights")
    manifest = next(store.glob("manifests/*/*/*/*"))
    manifest.write_text(json.dumps({"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:0", "size": 1}]}))
    with pytest.raises(StoreError, match=r"got no config\.json, want a model as a tree of files; this engine runs safetensors"):
        find_tree(store, "a:1", tmp_path / "weights")


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../b", "", "a//b", ".x", "a b", None])
def test_no_file_of_a_tree_lands_beside_it(model: Path, tmp_path: Path, path: str | None) -> None:
    store = tmp_path / "store"
    tree.add("a:1", model, store)
    manifest = next(store.glob("manifests/*/*/*/*"))
    found = json.loads(manifest.read_text())
    found["layers"].append(found["layers"][0] | {"annotations": {"org.opencontainers.image.title": path}})
    manifest.write_text(json.dumps(found))
    if path is None:
        find_tree(store, "a:1", tmp_path / "weights")
        assert not (tmp_path / "weights" / "x").exists()
        return
    with pytest.raises(StoreError, match="want one within the tree"):
        find_tree(store, "a:1", tmp_path / "weights")


def test_a_blob_that_was_cut_is_not_served(model: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    tree.add("a:1", model, store)
    largest = max((store / "blobs").iterdir(), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    with pytest.raises(StoreError, match="publish the model again"):
        find_tree(store, "a:1", tmp_path / "weights")


@pytest.mark.parametrize(
    "change",
    [{"data": b"\0" * 7}, {"data": b"\0" * 9}, {"length": 2**63}, {"length": 1}, {"length": 5}, {"end": -1}, {"end": 10**12}],
)
def test_weights_that_are_no_safetensors_are_not_taken(model: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    safetensors(model / "model.safetensors", **change)
    with pytest.raises(WriterError, match="got no sound safetensors file"):
        tree.add("a:1", model, tmp_path / "store")


_REACHES = "{{ ''.__class__.__mro__ }}"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.jinja", _REACHES),
        ("tokenizer_config.json", json.dumps({"chat_template": _REACHES})),
        ("tokenizer_config.json", json.dumps({"chat_template": [{"name": "default", "template": _REACHES}]})),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", '{"chat_template": [1]}'),
        ("tokenizer_config.json", "[" * 100_000),
    ],
)
def test_a_template_of_a_tree_that_reaches_out_is_not_taken(model: Path, tmp_path: Path, name: str, content: str) -> None:
    (model / name).write_text(content)
    with pytest.raises(WriterError):
        tree.add("a:1", model, tmp_path / "store")
    (model / name).write_text("{{ messages[0].content }}" if name.endswith("jinja") else '{"chat_template": "{{ messages }}"}')
    tree.add("a:1", model, tmp_path / "store")


def test_the_command_says_what_it_wants(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tree.main(["a:1", str(tmp_path), str(tmp_path / "store")]) == 1
    assert "got no config.json with safetensors beside it, want a model's tree; name its directory" in capsys.readouterr().err


def test_prompts_are_kept_apart_by_the_word_of_the_api_server_alone() -> None:
    asked = {"prompt": "a", "cache_salt": "another"}
    assert apart(asked, Vllm.apart_by, {"X-Cache-Owner": "mine"}) == {"prompt": "a", "cache_salt": "mine"}
    assert apart(asked, Vllm.apart_by, {}) == {"prompt": "a"}
    assert not LlamaCpp.apart_by, "it cannot, and docs/cache.md says so"
