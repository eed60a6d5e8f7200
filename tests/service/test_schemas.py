"""Schemas that hold up or end an engine never reach one, and those of real clients do: a real Ollama and the real llama.cpp engine."""

import json
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service.conftest import TOOL, ModelServerFactory
from tests.service.neighbours import Fleet, Request
from tests.service.processes import Service
from tests.service.test_agent_apis import ENGINES, SAY, api, message
from tests.service.test_gateway import post as ask
from tests.unit.test_schemas import DEAR, PATTERN, chain

__all__ = ["api"]


def chat(service: Service, model: str, **fields: Any) -> httpx.Response:
    return ask(service, "/v1/chat/completions", **{"model": model, "messages": SAY, "max_tokens": 300, **fields})


def function(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


@pytest.mark.parametrize("engine", ENGINES)
def test_what_would_hold_up_a_server_is_refused_at_once(api: Service, engine: str) -> None:
    started = time.monotonic()
    for name, schema in DEAR.items():
        refused = chat(api, f"{engine}/tool:1", tools=[function("get_weather", parameters=schema)])
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tools"), name
        refused = chat(api, f"{engine}/tool:1", response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "response_format"), name
    assert chat(api, f"{engine}/tool:1").status_code == 200
    assert time.monotonic() - started < 30


class TestWithoutTheBound:
    """What the engine makes of it: these bounds guard against something."""

    def test_a_pattern_of_forty_bytes_holds_up_everybody(self, model_server: ModelServerFactory) -> None:
        service = model_server("tool:1", MODEL_ID="a", PARALLEL="2")
        body = {"model": "a", "messages": SAY, "max_tokens": 9, "response_format": {"type": "json_object", "schema": PATTERN}}
        with suppress(httpx.TimeoutException):
            httpx.post(f"{service.url}/v1/chat/completions", json=body, timeout=3)
        with pytest.raises(httpx.TimeoutException):
            httpx.post(f"{service.url}/v1/completions", json={"model": "a", "prompt": "a", "max_tokens": 1}, timeout=10)

    def test_a_chain_of_references_that_would_end_it_has_too_many_values(self, model_server: ModelServerFactory) -> None:
        """llama.cpp goes from one to the next on its stack."""
        service = model_server("tiny:1", MODEL_ID="a")
        schema = chain(20_000) | {"properties": {"p": {"$ref": "#/$defs/r0"}}, "required": ["p"]}
        body = {"model": "a", "messages": SAY, "max_tokens": 9, "json_schema": schema}
        assert httpx.post(f"{service.url}/v1/chat/completions", json=body, timeout=60).status_code == 413


def test_a_template_of_a_clients_is_refused(api: Service) -> None:
    """Ollama runs it in the process of all models, and goes on after the client has left."""
    template = "{{ range 100000000 }}{{ range 100000000 }}{{ end }}{{ end }}{{ .Prompt }}"
    refused = ask(api, "/api/generate", model="ollama/tiny:1", prompt="a", stream=False, template=template)
    assert (refused.status_code, "template: got" in refused.json()["error"]) == (400, True)
    assert ask(api, "/api/generate", model="ollama/tiny:1", prompt="a", stream=False, template="").status_code == 200


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("parameters", [None, {}, {"type": "object"}, {"type": "object", "properties": None}])
def test_a_tool_without_parameters_is_one(api: Service, engine: str, parameters: object) -> None:
    """As MCP servers send them, in each API."""
    tool = function("get_weather") if parameters is None else function("get_weather", parameters=parameters)
    answer = chat(api, f"{engine}/tiny:1", tools=[tool])
    assert answer.status_code == 200, answer.text
    message(api, f"{engine}/tiny:1", SAY, tools=[{"name": "get_weather"} | ({"input_schema": parameters} if parameters else {})])
    if engine == "ollama":
        native = ask(api, "/api/chat", model=f"{engine}/tiny:1", messages=SAY, stream=False, tools=[{"function": tool["function"]}])
        assert native.status_code == 200, native.text


def test_the_model_server_honours_the_choice_of_a_tool_by_name(api: Service) -> None:
    """The model calls TOOL by itself."""
    schema = {"type": "object", "properties": {"location": {"type": "string", "enum": ["a"]}}, "required": ["location"]}
    tools = [function(TOOL["name"], parameters=schema), function("other", parameters=schema)]
    answer = chat(api, "llama.cpp/tool:1", tools=tools, tool_choice={"type": "function", "function": {"name": "other"}})
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "other"


def test_a_call_that_the_limit_cuts_off_is_the_requests_fault_and_no_servers(tmp_path: Path) -> None:
    """Ollama says 500, which clients send again, and which would put the server out after five."""
    cut = 'llama-server returned invalid tool call arguments for "f": unexpected end of JSON input'

    async def cuts(request: Request) -> None:
        await request.head("500 Internal Server Error")
        await request.say(json.dumps({"error": {"message": cut, "type": "api_error", "param": None, "code": None}}).encode())

    with ExitStack() as stack:
        fleet = stack.enter_context(Fleet(tmp_path).running())
        fleet.add(cuts)
        service = stack.enter_context(fleet.gateway())
        for _ in range(6):
            refused = chat(service, "a")
            assert (refused.status_code, "within a call of a tool" in refused.json()["error"]["message"]) == (400, True), refused.text
        out = [line for line in httpx.get(f"{service.metrics_url}/metrics", timeout=10).text.splitlines() if "upstream_out{" in line]
        assert [line.rpartition(" ")[2] for line in out] == ["0.0"]
