"""What agents send and look for, against a real Ollama and the real llama.cpp engine behind one gateway: abilities, a full context, replayed
histories, field names. Each input is one that a client was seen to send; docs/gateway.md says which."""

import asyncio
import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from api_server import errors
from model_sync import gguf
from tests import tiny_gguf
from tests.service import ollama as ollama_process
from tests.service.conftest import KEY, SCRIPT, ApiServerFactory, ModelServerFactory, start_api_server, start_model_server
from tests.service.neighbours import Fleet, Request
from tests.service.processes import ROOT, Service
from tests.service.test_gateway import CONTEXT, TOOLS, metric, post, route

MESSAGES: list[Any] = [{"role": "user", "content": "Say it."}]
LONG: list[Any] = [{"role": "user", "content": "x" * 3000}, {"role": "assistant", "content": "y"}, {"role": "user", "content": "hi"}]
ENGINES = ("ollama", "llama.cpp")
MODELS = ("plain:1", "able:1", "thinks:1")
STRICT = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('System message must be at the beginning.') }}"
    "{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Knows no tools, does not think, and raises on a later system message, as those of Qwen 3.5 do."""
THINKS = tiny_gguf.CHATML.replace("{{ m.content }}<|im_end|>", "{{ m.content.split('</think>')[-1] if m.content else '' }}<|im_end|>") + (
    "{% if false %}<think></think>{% endif %}"
)
CALL = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"location": "Boston"}'}}


@pytest.fixture(scope="module")
def agents_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("agents-store")
    for name, template in zip(MODELS, (STRICT, tiny_gguf.CHATML, THINKS), strict=True):
        gguf.add(name, tiny_gguf.make(work / "model.gguf", SCRIPT, template=template), work / "models")
    return work / "models"


@pytest.fixture(scope="module")
def agents_ollama(ollama_program: Path, agents_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with ollama_process.running(ollama_program, agents_store, tmp_path_factory.mktemp("agents-ollama")) as service:
        yield service


@pytest.fixture(scope="module")
def api(agents_ollama: Service, agents_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One gateway in front of both engines: `ollama/plain:1`, `llama.cpp/plain:1` and so on."""
    work = tmp_path_factory.mktemp("agents")
    routes: dict[str, dict[str, object]] = {f"ollama/{model}": route(agents_ollama.url, model) for model in MODELS}
    with ExitStack() as stack:
        for model in MODELS:
            server = start_model_server(stack, agents_store, work, model)
            routes[f"llama.cpp/{model}"] = {"url": server.url, "model": model}
        yield start_api_server(stack, work, routes)


def chat(service: Service, model: str, **fields: object) -> httpx.Response:
    return post(service, "/v1/chat/completions", **{"model": model, "messages": MESSAGES, "max_tokens": 64, **fields})


def said(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


class TestAbilities:
    @pytest.mark.parametrize("engine", ENGINES)
    @pytest.mark.parametrize(
        "field", [{"reasoning_effort": "high"}, {"reasoning": {"effort": "high"}}, {"thinking": {"type": "enabled"}}, {"think": True}]
    )
    def test_a_wish_to_think_is_dropped_for_a_model_that_cannot(self, api: Service, engine: str, field: dict[str, Any]) -> None:
        assert said(chat(api, f"{engine}/plain:1", **field)) == SCRIPT
        assert metric(api, "api_server_dropped_fields_total", model=f"{engine}/plain:1", field=next(iter(field))) >= 1

    def test_ollama_itself_refuses_it(self, agents_ollama: Service) -> None:
        body = {"model": "plain:1", "messages": MESSAGES, "reasoning_effort": "high"}
        refused = httpx.post(f"{agents_ollama.url}/v1/chat/completions", json=body, timeout=60)
        assert (refused.status_code, "does not support thinking" in refused.text) == (400, True)

    def test_ollamas_own_api_too(self, api: Service) -> None:
        for path, fields in (("/api/chat", {"messages": MESSAGES}), ("/api/generate", {"prompt": "Say it."})):
            assert post(api, path, model="ollama/plain:1", think="high", stream=False, **fields).status_code == 200

    @pytest.mark.parametrize("engine", ENGINES)
    def test_a_model_that_thinks_gets_the_wish(self, api: Service, engine: str) -> None:
        assert chat(api, f"{engine}/thinks:1", reasoning_effort="high").status_code == 200
        assert metric(api, "api_server_dropped_fields_total", model=f"{engine}/thinks:1", field="reasoning_effort") == 0

    @pytest.mark.parametrize("engine", ENGINES)
    @pytest.mark.parametrize("stream", [False, True])
    def test_tools_are_refused_by_name_for_a_model_without(self, api: Service, engine: str, stream: bool) -> None:
        refused = chat(api, f"{engine}/plain:1", tools=TOOLS, stream=stream)
        assert refused.status_code == 400
        error = refused.json()["error"]
        assert error["message"].startswith(f"tools: got tools for {engine}/plain:1")
        assert (error["type"], error["param"]) == ("invalid_request_error", "tools")
        assert said(chat(api, f"{engine}/plain:1", tools=[])) == SCRIPT

    @pytest.mark.parametrize("engine", ENGINES)
    def test_tools_pass_for_a_model_with_them_and_an_image_does_not(self, api: Service, engine: str) -> None:
        assert said(chat(api, f"{engine}/able:1", tools=TOOLS)) == SCRIPT
        image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
        refused = chat(api, f"{engine}/able:1", messages=[{"role": "user", "content": [image]}])
        assert (refused.status_code, f"for {engine}/able:1, want text" in refused.text) == (400, True)

    @pytest.mark.parametrize("engine", ENGINES)
    def test_the_list_of_models_says_it_with_the_context(self, api: Service, engine: str) -> None:
        entry = httpx.get(f"{api.url}/v1/models/{engine}/able:1", headers={"x-api-key": KEY}, timeout=10).json()
        assert (entry["context_length"], entry["max_model_len"]) == (CONTEXT, CONTEXT)
        assert "tools" in entry["capabilities"]

    def test_a_server_that_does_not_say_it_answers_all_the_same(
        self, api_server: ApiServerFactory, model_server: ModelServerFactory
    ) -> None:
        """The name that the server goes by is not in its list: as from a server of another make."""
        server = model_server("tiny:1", MODEL_ID="other")
        api = api_server({"a": {"url": server.url, "model": "other"}, "b": {"url": server.url, "model": "absent"}})
        assert said(chat(api, "a", reasoning_effort="high")) == SCRIPT
        assert chat(api, "b", tools=TOOLS).json()["error"]["code"] == "model_not_found", "the server's own word, not ours"


def phrases() -> dict[str, str]:
    """Client, and the pattern that it looks for, from the table of docs/gateway.md."""
    rows = re.findall(r"^\| ([^|]+) \| `([^`]+)` \| \S", (ROOT / "docs" / "gateway.md").read_text(), re.MULTILINE)
    return {client: pattern.replace("\\|", "|") for client, pattern in rows}


class TestFullContext:
    @pytest.mark.parametrize("engine", ENGINES)
    @pytest.mark.parametrize("stream", [False, True])
    def test_it_is_said_in_every_clients_words(self, api: Service, engine: str, stream: bool) -> None:
        refused = chat(api, f"{engine}/plain:1", messages=LONG, stream=stream)
        assert refused.status_code == 400
        error = refused.json()["error"]
        assert error["code"] == "context_length_exceeded"
        looked_for = phrases()
        assert {"litellm", "OpenHands SDK", "opencode", "Cline", "Claude Code"} <= set(looked_for)
        for client, pattern in looked_for.items():
            assert re.search(pattern, error["message"], re.IGNORECASE), f"{client}: {pattern}: {error['message']}"

    @pytest.mark.parametrize("engine", ENGINES)
    @pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
    def test_a_limit_as_large_as_the_window_is_answered(self, api: Service, engine: str, name: str) -> None:
        body: dict[str, object] = {"model": f"{engine}/plain:1", "messages": MESSAGES, name: 32_000}
        assert said(post(api, "/v1/chat/completions", **body)) == SCRIPT

    def test_litellm_raises_its_exception_for_it(self, api: Service, clients_python: Path) -> None:
        asked = [
            (engine, stream, messages, effort)
            for engine in ENGINES
            for stream in (False, True)
            for messages, effort in ((LONG, None), (MESSAGES, "high"))
        ]
        given = [
            {"model": f"openai/{engine}/plain:1", "messages": messages, "stream": stream, "reasoning_effort": effort}
            for engine, stream, messages, effort in asked
        ]
        wanted = ["ContextWindowExceededError" if messages is LONG else SCRIPT for _, _, messages, _ in asked]
        assert litellm(clients_python, api, given) == wanted

    def test_litellm_raises_it_within_a_stream_that_has_begun_too(self, clients_python: Path, tmp_path: Path) -> None:
        """As when a long prompt takes its server longer to count than a stream may be silent."""
        body = errors.context_exceeded("a", 3010, 2048).body

        async def late(request: Request) -> None:
            await asyncio.sleep(1.5)
            await request.answer(json.dumps(body).encode(), "400 Bad Request")

        with Fleet(tmp_path).running() as fleet:
            fleet.add(late)
            with fleet.gateway(SILENCE_S="0.5") as service:
                given = [{"model": "openai/a", "messages": MESSAGES, "stream": True}]
                assert litellm(clients_python, service, given) == ["ContextWindowExceededError"]
                assert metric(service, "api_server_requests_total", model="a", status="400") == 1
                assert metric(service, "api_server_context_refusals_total", model="a") == 1


CLIENT = """
import json, sys
import litellm
def said(given):
    try:
        answer = litellm.completion(**given)
        parts = [answer.choices[0].message.content] if not given["stream"] else [chunk.choices[0].delta.content or "" for chunk in answer]
        return "".join(parts)
    except Exception as error:
        return type(error).__name__
print(json.dumps([said(given) for given in json.loads(sys.stdin.read())]))
"""


def litellm(python: Path, api: Service, requests: list[dict[str, Any]]) -> list[str]:
    """What litellm makes of each answer: its text, or the class of the exception. One process, whose start is most of the time."""
    common = {"api_base": f"{api.url}/v1", "api_key": KEY, "max_tokens": 64, "num_retries": 0}
    common |= {"allowed_openai_params": ["reasoning_effort"]}
    given = [common | {key: value for key, value in each.items() if value is not None} for each in requests]
    environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "HOME": str(python.parent)}
    done = subprocess.run([python, "-c", CLIENT], input=json.dumps(given), env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def history(*middle: dict[str, Any]) -> list[Any]:
    return [*MESSAGES, *middle, {"role": "user", "content": "Go on."}]


def replied(arguments: object, content: object = "sunny") -> list[Any]:
    call = {**CALL, "function": {"name": "get_weather", "arguments": arguments}}
    return history({"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c1", "content": content})


@pytest.mark.parametrize("engine", ENGINES)
class TestReplayedHistories:
    @pytest.mark.parametrize("arguments", ["", "{", '{"location": "Bos', "null", {"location": "Boston"}])
    def test_arguments_that_are_no_json(self, api: Service, engine: str, arguments: object) -> None:
        assert said(chat(api, f"{engine}/able:1", messages=replied(arguments), tools=TOOLS)) == SCRIPT

    def test_a_result_in_parts_is_the_same_prompt_as_in_one_text(self, api: Service, engine: str) -> None:
        parts = [{"type": "text", "text": "sunny", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "and warm"}]
        used = [
            chat(api, f"{engine}/able:1", messages=replied('{"location": "Boston"}', content), tools=TOOLS).json()["usage"]["prompt_tokens"]
            for content in ("sunny\nand warm", parts)
        ]
        assert used[0] == used[1]

    @pytest.mark.parametrize(
        "messages",
        [
            history({"role": "assistant", "content": None}),
            history({"role": "assistant", "content": None, "reasoning_content": "Done."}),
            history({"role": "assistant", "content": "a"}, {"role": "system", "content": "Be brief."}),
            history({"role": "system", "content": "Be brief."}),
            [{"role": "developer", "content": "Be brief."}, *MESSAGES],
            [{"role": "system", "content": "Be brief."}, {"role": "developer", "content": "Be kind."}, *MESSAGES],
        ],
        ids=["null", "thoughts-alone", "later-system", "system-after-user", "developer", "two-systems"],
    )  # fmt: skip
    def test_turns_that_strict_servers_refuse(self, api: Service, engine: str, messages: list[Any]) -> None:
        assert said(chat(api, f"{engine}/plain:1", messages=messages)) == SCRIPT
        padded = [{"role": "system", "content": "\N{GRINNING FACE}" * 400}, *messages]
        assert said(chat(api, f"{engine}/plain:1", messages=padded)) == SCRIPT, "and when the prompt has to be counted"

    def test_an_image_by_address_is_refused_in_words_that_help(self, api: Service, engine: str) -> None:
        part = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
        refused = chat(api, f"{engine}/able:1", messages=[{"role": "user", "content": [part]}])
        assert (refused.status_code, "got an image by address, want data:image/png;base64," in refused.text) == (400, True)


class TestFieldNames:
    @pytest.mark.parametrize("name", ["keep_alive", "Keep_Alive", "KEEP_ALIVE", "\u212aeep_alive"])
    def test_no_spelling_unloads_a_model(self, api: Service, agents_ollama: Service, name: str) -> None:
        ollama_process.load(agents_ollama, "plain:1")
        for path, fields in (
            ("/api/generate", {}),
            ("/api/chat", {"messages": MESSAGES}),
            ("/v1/chat/completions", {"messages": MESSAGES}),
        ):
            assert post(api, path, model="ollama/plain:1", stream=False, **fields, **{name: 0}).status_code == 200
            assert ollama_process.context_of(agents_ollama, "plain:1") == CONTEXT
        httpx.post(f"{agents_ollama.url}/api/generate", json={"model": "plain:1", name: 0}, timeout=60)
        assert ollama_process.context_of(agents_ollama, "plain:1") == 0, "Ollama itself reads every spelling"

    def test_no_spelling_reaches_another_model_context_or_prompt(self, api: Service, agents_ollama: Service) -> None:
        before = metric(api, "api_server_dropped_fields_total", model="ollama/plain:1", field="other")
        extra: dict[str, Any] = {"Model": "able:1", "Option\u017f": {"num_ctx": 1024}, "Options": {"num_ctx": 1024}, "Messages": LONG}
        answer = post(api, "/api/chat", model="ollama/plain:1", messages=MESSAGES, stream=False, **extra)
        assert (answer.status_code, answer.json()["model"]) == (200, "plain:1")
        assert answer.json()["prompt_eval_count"] < 100
        assert ollama_process.context_of(agents_ollama, "plain:1") == CONTEXT
        assert metric(api, "api_server_dropped_fields_total", model="ollama/plain:1", field="other") == before + len(extra)

    def test_a_doubled_key_is_refused(self, api: Service) -> None:
        for body in (
            '{"model": "plain:1", "messages": [], "messages": []}',
            '{"model": "plain:1", "messages": [{"role": "user", "role": "user"}]}',
        ):
            refused = httpx.post(f"{api.url}/v1/chat/completions", content=body, headers={"x-api-key": KEY}, timeout=10)
            assert (refused.status_code, "twice in one object" in refused.json()["error"]["message"]) == (400, True)
