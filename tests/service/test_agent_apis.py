"""What coding agents speak, Responses and Messages, and rerank: a real Ollama and the real llama.cpp engine behind one gateway."""

import asyncio
import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import ollama as ollama_client
import openai
import pytest
from openai.types.responses import Response, ResponseFunctionToolCall, ToolParam

from tests.service.conftest import KEY, SCRIPT, TOOL, start_api_server, start_model_server
from tests.service.neighbours import Fleet, Request
from tests.service.processes import Service, free_port
from tests.service.test_gateway import CONTEXT, metric, route
from tests.service.test_gateway import TOOLS as CHAT_TOOLS
from tests.unit.test_agent_apis import CLAUDE_CODE, CODEX

ENGINES = ("ollama", "llama.cpp")
SAY: list[Any] = [{"role": "user", "content": "Say it."}]
LONG = "x" * 3000
SCHEMA: dict[str, object] = {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]}
TOOLS: list[Any] = [{"name": TOOL["name"], "description": "The weather somewhere", "input_schema": SCHEMA}]
FUNCTIONS: list[ToolParam] = [
    {"type": "function", "name": "get_weather", "description": "The weather somewhere", "parameters": SCHEMA, "strict": False}
]
EVENT = re.compile(r"event: (\S+)\ndata: (.*)\n\n")


@pytest.fixture(scope="module")
def api(ollama: Service, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One gateway in front of both engines: `ollama/tiny:1`, `llama.cpp/tiny:1` and so on."""
    work = tmp_path_factory.mktemp("agent-apis")
    routes: dict[str, dict[str, object]] = {f"ollama/{model}": route(ollama.url, model) for model in ("tiny:1", "tool:1", "loop:1")}
    with ExitStack() as stack:
        for model in ("tiny:1", "tool:1", "rank:1"):
            routes[f"llama.cpp/{model}"] = {"url": start_model_server(stack, store, work, model).url, "model": model}
        yield start_api_server(stack, work, routes)


@pytest.fixture(scope="module")
def client(api: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{api.url}/v1", api_key=KEY, max_retries=0, timeout=60) as client:
        yield client


def post(service: Service, path: str, **body: object) -> httpx.Response:
    """As Anthropic's clients do."""
    headers = {"x-api-key": KEY, "anthropic-version": "2023-06-01", "anthropic-beta": "claude-code-20250219"}
    return httpx.post(f"{service.url}{path}?beta=true", json=body, headers=headers, timeout=60)


def message(service: Service, model: str, messages: list[Any], *, stream: bool = False, **fields: object) -> dict[str, Any]:
    """An answer of Messages; of a stream, put together from its events."""
    body = {"model": model, "messages": messages, "max_tokens": 64, "stream": stream, **fields}
    response = post(service, "/v1/messages", **body)
    assert response.status_code == 200, response.text
    assert response.headers["request-id"] == response.headers["x-request-id"]
    if not stream:
        return response.json()
    events = [(name, json.loads(data)) for name, data in EVENT.findall(response.text)]
    assert (events[0][0], events[-1][0]) == ("message_start", "message_stop")
    whole: dict[str, Any] = {**events[0][1]["message"], "content": []}
    parts: list[str] = []
    for name, data in events:
        if name == "content_block_start":
            whole["content"].append(data["content_block"])
        elif name == "content_block_delta":
            parts.append(data["delta"].get("text") or data["delta"].get("partial_json") or "")
        elif name == "content_block_stop":
            block, text = whole["content"][-1], "".join(parts)
            block |= {"text": text} if block["type"] == "text" else {"input": json.loads(text or "{}")}
            parts = []
        elif name == "message_delta":
            whole["stop_reason"] = data["delta"]["stop_reason"]
            whole["usage"] |= data["usage"]
    return whole


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("stream", [False, True])
class TestMessages:
    def test_a_model_says_it_and_its_tokens_are_counted(self, api: Service, engine: str, stream: bool) -> None:
        model = f"{engine}/tiny:1"
        before = [metric(api, f"api_server_{kind}_tokens_total", model=model) for kind in ("prompt", "completion")]
        answer = message(api, model, SAY, stream=stream)
        assert [block["text"] for block in answer["content"] if block["type"] == "text"] == [SCRIPT]
        assert answer["stop_reason"] == "end_turn"
        usage = answer["usage"]
        read = usage["input_tokens"] + usage.get("cache_read_input_tokens", 0)
        after = [metric(api, f"api_server_{kind}_tokens_total", model=model) for kind in ("prompt", "completion")]
        assert [new - old for new, old in zip(after, before, strict=True)] == [read, usage["output_tokens"]]

    def test_a_conversation_with_tools_goes_on(self, api: Service, engine: str, stream: bool) -> None:
        model, turns = f"{engine}/tool:1", [*SAY]
        for turn in range(2):
            answer = message(api, model, turns, stream=stream, tools=TOOLS)
            [call] = [block for block in answer["content"] if block["type"] == "tool_use"]
            assert (call["name"], call["input"], answer["stop_reason"]) == (TOOL["name"], TOOL["arguments"], "tool_use"), turn
            result = {"type": "tool_result", "tool_use_id": call["id"], "content": [{"type": "text", "text": "sunny"}]}
            reminder = {"type": "text", "text": "<system-reminder>Go on.</system-reminder>", "cache_control": {"type": "ephemeral"}}
            turns += [{"role": "assistant", "content": answer["content"]}, {"role": "user", "content": [result, reminder]}]

    def test_claude_codes_defaults_get_an_answer(self, api: Service, engine: str, stream: bool) -> None:
        given = {key: value for key, value in CLAUDE_CODE.items() if key not in ("model", "messages", "stream")}
        answer = message(api, f"{engine}/tiny:1", CLAUDE_CODE["messages"], stream=stream, **given)
        assert answer["content"][-1]["text"] == SCRIPT
        assert metric(api, "api_server_dropped_fields_total", model=f"{engine}/tiny:1", field="context_management") >= 1

    def test_a_prompt_that_is_too_long_is_refused_in_its_words(self, api: Service, engine: str, stream: bool) -> None:
        body = {"model": f"{engine}/tiny:1", "max_tokens": 8, "stream": stream, "messages": [{"role": "user", "content": LONG}]}
        refused = post(api, "/v1/messages", **body)
        error = refused.json()
        assert (refused.status_code, error["type"], error["error"]["type"]) == (400, "error", "invalid_request_error")
        assert re.search(rf"prompt is too long: \d+ tokens > {CONTEXT} maximum", error["error"]["message"])
        assert error["request_id"] == refused.headers["request-id"]


@pytest.mark.parametrize("engine", ENGINES)
def test_tokens_are_counted_as_for_the_answer(api: Service, engine: str) -> None:
    for fields in ({}, {"system": "Be brief.", "tools": TOOLS}):
        counted = post(api, "/v1/messages/count_tokens", model=f"{engine}/tiny:1", messages=SAY, **fields)
        usage = message(api, f"{engine}/tiny:1", SAY, **fields)["usage"]
        assert counted.json() == {"input_tokens": usage["input_tokens"] + usage.get("cache_read_input_tokens", 0)}
    long = [{"role": "user", "content": LONG}]
    assert post(api, "/v1/messages/count_tokens", model=f"{engine}/tiny:1", messages=long).json()["input_tokens"] > CONTEXT


def test_ollamas_answer_ends_where_the_context_does(api: Service) -> None:
    """It would forget the beginning, and go on."""
    answer = message(api, "ollama/loop:1", SAY, max_tokens=32_000)
    assert answer["stop_reason"] == "max_tokens"
    assert answer["usage"]["input_tokens"] + answer["usage"]["output_tokens"] < CONTEXT
    response = post(api, "/v1/responses", model="ollama/loop:1", input="Say it.", max_output_tokens=32_000).json()
    assert response["usage"]["total_tokens"] < CONTEXT


def response_of(client: openai.OpenAI, stream: bool, **given: Any) -> Response:
    """Of a stream, from its last event: llama.cpp's others have no places, without which the library cannot put them together."""
    if not stream:
        return client.responses.create(**given)
    events = list(client.responses.create(**given, stream=True))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    return events[-1].response


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("stream", [False, True])
class TestResponses:
    def test_a_model_says_it_and_its_tokens_are_counted(self, api: Service, client: openai.OpenAI, engine: str, stream: bool) -> None:
        model = f"{engine}/tiny:1"
        before = [metric(api, f"api_server_{kind}_tokens_total", model=model) for kind in ("prompt", "completion")]
        response = response_of(client, stream, model=model, input="Say it.", instructions="Be brief.")
        assert (response.output_text, response.status) == (SCRIPT, "completed")
        assert response.usage is not None
        after = [metric(api, f"api_server_{kind}_tokens_total", model=model) for kind in ("prompt", "completion")]
        used = [new - old for new, old in zip(after, before, strict=True)]
        assert used == [response.usage.input_tokens, response.usage.output_tokens]

    def test_a_conversation_with_tools_goes_on(self, client: openai.OpenAI, engine: str, stream: bool) -> None:
        items: list[Any] = [{"role": "developer", "content": "Call it."}, {"role": "user", "content": "Weather?"}]
        for turn in range(2):
            response = response_of(client, stream, model=f"{engine}/tool:1", input=items, tools=FUNCTIONS, store=False)
            [call] = [item for item in response.output if isinstance(item, ResponseFunctionToolCall)]
            assert (call.name, json.loads(call.arguments)) == (TOOL["name"], TOOL["arguments"]), turn
            items += [item.model_dump(exclude_none=True) for item in response.output]
            items.append({"type": "function_call_output", "call_id": call.call_id, "output": [{"type": "input_text", "text": "sunny"}]})
            items.append({"role": "developer", "content": "Go on."})

    def test_a_history_with_thoughts_and_text_goes_on(self, client: openai.OpenAI, engine: str, stream: bool) -> None:
        items: list[Any] = [
            {"role": "user", "content": "Say it."},
            {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "Hm."}], "encrypted_content": "gAAA"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "It."}]},
            {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
            {"type": "function_call", "call_id": "c", "name": "get_weather", "arguments": '{"location": '},
            {"type": "function_call_output", "call_id": "c", "output": "sunny"},
            {"role": "assistant", "content": "Sunny."},
            {"role": "user", "content": "Again."},
        ]
        assert response_of(client, stream, model=f"{engine}/tiny:1", input=items).output_text == SCRIPT

    def test_codexs_defaults_get_an_answer(self, api: Service, engine: str, stream: bool) -> None:
        response = post(api, "/v1/responses", **{**CODEX, "model": f"{engine}/tiny:1", "stream": stream})
        assert response.status_code == 200, response.text
        assert SCRIPT in response.text
        assert not stream or [name for name, _ in EVENT.findall(response.text)][-1] == "response.completed"
        assert metric(api, "api_server_dropped_fields_total", model=f"{engine}/tiny:1", field="prompt_cache_key") >= 1

    def test_a_prompt_that_is_too_long_is_refused_in_its_words(self, client: openai.OpenAI, engine: str, stream: bool) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model=f"{engine}/tiny:1", input=LONG, stream=stream)
        assert caught.value.code == "context_length_exceeded"

    def test_an_answer_has_the_form_that_was_asked_for(self, client: openai.OpenAI, engine: str, stream: bool) -> None:
        """The model says its sentence whatever is asked, so that only a grammar can make JSON of it."""
        form: Any = {"type": "json_schema", "name": "n", "schema": {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}}
        response = response_of(client, stream, model=f"{engine}/tiny:1", input="Say it.", text={"format": form}, max_output_tokens=64)
        assert response.output_text.lstrip().startswith("{")


class TestRefusals:
    def test_each_has_the_shape_of_its_api(self, api: Service) -> None:
        for path, body, words in (
            ("/v1/responses", {"input": "a", "previous_response_id": "r"}, "previous_response_id: got"),
            ("/v1/responses", {"input": "a", "background": True}, "background: got True, want false"),
            ("/v1/messages", {"messages": SAY, "max_tokens": 9, "tool_choice": {"type": "any"}, "tools": TOOLS}, "tool_choice: got"),
            ("/v1/rerank", {"query": "q", "documents": ["d"]}, "at /v1/rerank, want a model whose server has it"),
        ):
            refused = post(api, path, model="ollama/tiny:1", **body)
            assert (refused.status_code, words in refused.json()["error"]["message"]) == (400, True), refused.text
            assert (refused.json().get("type") == "error") is (path == "/v1/messages")

    def test_keys_models_and_paths_of_messages(self, api: Service) -> None:
        body = {"model": "none", "messages": SAY, "max_tokens": 9}
        unknown = post(api, "/v1/messages", **body)
        no_key = httpx.post(f"{api.url}/v1/messages", json=body, timeout=10)
        no_path = post(api, "/v1/messages/batches", **body)
        found = [(each.status_code, each.json()["error"]["type"]) for each in (unknown, no_key, no_path)]
        assert found == [(404, "not_found_error"), (401, "authentication_error"), (404, "not_found_error")]


def test_documents_are_ranked(api: Service) -> None:
    answer = post(api, "/v1/rerank", model="llama.cpp/rank:1", query="a", documents=["b", "c"], top_n=1).json()
    assert len(answer["results"]) == 1
    assert metric(api, "api_server_prompt_tokens_total", model="llama.cpp/rank:1") == answer["usage"]["prompt_tokens"]


START = b'event: message_start\ndata: {"type": "message_start", "message": {"usage": {"input_tokens": 4, "output_tokens": 0}}}\n\n'


async def late_and_cut(request: Request) -> None:
    """Begins after two signs of life, and ends in the middle."""
    await request.head("200 OK", "text/event-stream")
    await asyncio.sleep(1.2)
    created = b'event: response.created\ndata: {"type": "response.created", "response": {"id": "r", "output": []}}\n\n'
    await request.say(START if request.path == "/v1/messages" else created)


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with ExitStack() as stack:
        fleet = stack.enter_context(Fleet(tmp_path_factory.mktemp("cut")).running())
        fleet.add(late_and_cut)
        yield stack.enter_context(fleet.gateway(SILENCE_S="0.5"))


class TestStreams:
    def test_messages_get_pings_and_an_error_event(self, cut: Service) -> None:
        text = post(cut, "/v1/messages", model="a", messages=SAY, max_tokens=9, stream=True).text
        events = [(name, json.loads(data)) for name, data in EVENT.findall(text)]
        assert [name for name, _ in events] == ["ping", "ping", "message_start", "error"]
        assert events[0][1] == {"type": "ping"}
        assert events[-1][1]["error"] == {
            "type": "api_error",
            "message": "a: got an answer that is not whole from its server, want an answer; try again",
        }
        assert metric(cut, "api_server_prompt_tokens_total", model="a") == 4, "what was used is counted"

    def test_openais_client_skips_the_signs_and_raises_on_the_error(self, cut: Service) -> None:
        text = post(cut, "/v1/responses", model="a", input="Say it.", stream=True).text
        assert text.startswith(": working\n\n: working\n\nevent: response.created")
        assert [name for name, _ in EVENT.findall(text)] == ["response.created", "error", "response.failed"]
        with openai.OpenAI(base_url=f"{cut.url}/v1", api_key=KEY, max_retries=0, timeout=60) as client:
            seen: list[str] = []
            stream = client.responses.create(model="a", input="Say it.", stream=True)
            with pytest.raises(openai.APIError, match="an answer that is not whole"):
                for event in stream:
                    seen.append(event.type)
            assert seen == ["response.created"]

    def test_one_that_was_held_in_vain_is_told_so_within_the_stream(self, tmp_path: Path) -> None:
        routes: dict[str, dict[str, object]] = {"a": route(f"http://127.0.0.1:{free_port()}", "a")}
        with ExitStack() as stack:
            api = start_api_server(stack, tmp_path, routes, HOLD_S="1.5", SILENCE_S="0.5")
            held = post(api, "/v1/messages", model="a", messages=SAY, max_tokens=9, stream=True)
            whole = post(api, "/v1/messages", model="a", messages=SAY, max_tokens=9)
        events = [(name, json.loads(data)) for name, data in EVENT.findall(held.text)]
        assert (held.status_code, events[0][0], events[-1][0]) == (200, "ping", "error")
        assert events[-1][1]["error"]["type"] == "overloaded_error"
        assert (whole.status_code, whole.json()["error"]["type"]) == (503, "overloaded_error")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("stream", [False, True])
def test_openais_client_holds_a_conversation_with_tools(client: openai.OpenAI, engine: str, stream: bool) -> None:
    """By its own helper, which puts a stream together as agents see it."""
    turns: list[Any] = [{"role": "system", "content": "Call it."}, {"role": "user", "content": "Weather?"}]
    for turn in range(3):
        given: Any = {"model": f"{engine}/tool:1", "messages": turns, "tools": CHAT_TOOLS}
        if stream:
            with client.chat.completions.stream(**given) as events:
                choice = events.get_final_completion().choices[0]
        else:
            choice = client.chat.completions.create(**given).choices[0]
        [call] = choice.message.tool_calls or []
        assert call.type == "function"
        found = (call.function.name, json.loads(call.function.arguments), choice.finish_reason)
        assert found == (TOOL["name"], TOOL["arguments"], "tool_calls"), turn
        turns += [choice.message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}, {"role": "user", "content": "Go on."}]


@pytest.mark.parametrize("stream", [False, True])
def test_ollamas_client_holds_a_conversation_with_tools(api: Service, stream: bool) -> None:
    turns: list[Any] = [{"role": "system", "content": "Call it."}, {"role": "user", "content": "Weather?"}]
    read: list[int] = []
    with ollama_client.Client(api.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as native:
        for turn in range(3):
            answer = native.chat("ollama/tool:1", turns, tools=CHAT_TOOLS, stream=stream)
            parts = [answer] if isinstance(answer, ollama_client.ChatResponse) else list(answer)
            [call] = [call for part in parts for call in part.message.tool_calls or []]
            assert (call.function.name, call.function.arguments, parts[-1].done) == (TOOL["name"], TOOL["arguments"], True), turn
            read.append(parts[-1].prompt_eval_count or 0)
            said = {"role": "assistant", "content": "", "tool_calls": [call.model_dump()]}
            turns += [said, {"role": "tool", "tool_name": call.function.name, "content": "sunny"}]
    assert read == sorted(set(read)), "each turn has all that was said"


def test_clients_of_others_hold_a_conversation_with_tools(api: Service, clients_python: Path) -> None:
    """anthropic, langchain-openai and litellm in their defaults, streamed and not, on both engines."""
    models = [f"{engine}/{model}" for engine in ENGINES for model in ("tool:1", "tiny:1")]
    asked = {"url": api.url, "key": KEY, "models": models}
    environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "HOME": str(clients_python.parent), "LANGSMITH_TRACING": "false"}
    program = Path(__file__).with_name("conversing.py")
    done = subprocess.run([clients_python, program], input=json.dumps(asked), env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert len(found) == 3 * len(models) * 2
    for client, model, stream, turns in found:
        calls = [[TOOL["name"], TOOL["arguments"]]] if "tool" in model else []
        for called, text in turns:
            assert (called, "" if calls else text) == (calls, "" if calls else SCRIPT), (client, model, stream, turns)
