"""Messages, Responses and rerank: what goes on of them, how they are counted, and how their streams and errors speak. No server."""

import copy
import functools
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from openai._streaming import SSEDecoder

from api_server import abilities, counting, errors, messages, models, openapi, requests, responses, size, translation
from api_server.abilities import Abilities
from api_server.aliases import Aliases
from api_server.models import Engine
from api_server.paths import COUNT_TOKENS, ENDPOINTS, MESSAGES, RERANK, RESPONSES, Payload, encode
from api_server.routing import Routing
from api_server.sessions import Said, Sessions, beginning
from api_server.settings import Route
from api_server.streams import STREAMS
from api_server.usage import Reader

OLLAMA = Route(url="http://ollama:11434", model="m:1", engine="ollama", context_length=2048)
OTHER = Route(url="http://server:8080")
ROUTES = {"ollama": OLLAMA, "openai": OTHER}
ENGINES: list[Engine] = ["ollama", "openai"]
USER: Payload = {"role": "user", "content": "a"}
TOOL: Payload = {"name": "f", "description": "d", "input_schema": {"type": "object", "properties": {}}}
FUNCTION: Payload = {
    "type": "function",
    "name": "f",
    "description": "d",
    "parameters": {"type": "object", "properties": {}},
    "strict": False,
}
IMAGE: Payload = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QUJD"}}
CLAUDE_CODE: Payload = {
    "model": "a",
    "max_tokens": 32000,
    "stream": True,
    "system": [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1; cch=a5145;"},
        {"type": "text", "text": "You are an agent.", "cache_control": {"type": "ephemeral"}},
    ],
    "messages": [{"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]}],
    "tools": [TOOL | {"cache_control": {"type": "ephemeral"}, "eager_input_streaming": True}],
    "metadata": {"user_id": "u"},
    "thinking": {"type": "adaptive", "display": "omitted"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "output_config": {"effort": "medium"},
    "temperature": 1,
}
CODEX: Payload = {
    "model": "a",
    "instructions": "You are an agent.",
    "input": [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Rules."}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
    ],
    "tools": [FUNCTION, {"type": "custom", "name": "apply_patch", "format": {}}, {"type": "web_search", "external_web_access": False}],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "reasoning": {"effort": "medium", "summary": "auto"},
    "store": False,
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "k",
    "text": {"verbosity": "medium"},
    "client_metadata": {"a": "b"},
}


def cleaned(path: str, engine: Engine, payload: Payload) -> tuple[Payload, list[str]]:
    return requests.cleaned(path, payload, ROUTES[engine], "a")


TURN = functools.partial(Sessions().turn, b"", Said())


class TestDefaultsOfAgents:
    @pytest.mark.parametrize("engine", ENGINES)
    def test_those_of_claude_code_go_on(self, engine: Engine) -> None:
        sent, dropped = cleaned(MESSAGES, engine, CLAUDE_CODE)
        assert sent["system"] == "You are an agent."
        assert sent["messages"] == [{"role": "user", "content": "hi"}]
        assert sent["tools"] == [TOOL]
        assert sent["thinking"] == {"type": "adaptive"}
        assert {"metadata", "context_management", "display"} <= set(dropped)
        assert ("output_config" in sent) is (engine == "ollama")
        assert "stream_options" not in sent

    @pytest.mark.parametrize("engine", ENGINES)
    def test_those_of_codex_go_on(self, engine: Engine) -> None:
        sent, dropped = cleaned(RESPONSES, engine, CODEX)
        assert sent["instructions"] == "You are an agent.\n\nRules."
        assert [item["role"] for item in sent["input"]] == ["user"]
        assert sent["tools"] == [FUNCTION]
        assert sent["reasoning"] == {"effort": "medium"}
        expected = {"store", "include", "prompt_cache_key", "client_metadata", "summary", "verbosity", "tools.custom", "tools.web_search"}
        assert expected <= set(dropped)
        assert ("parallel_tool_calls" in sent) is (engine == "openai"), "Ollama passes over it, and Codex can handle two calls"

    @pytest.mark.parametrize("engine", ENGINES)
    @pytest.mark.parametrize("name", ["output_config", "output_format"])
    def test_the_schema_of_a_sessions_title_is_asked_for_in_words(self, engine: Engine, name: str) -> None:
        form = {"type": "json_schema", "schema": {"type": "object", "required": ["title"]}}
        given = CLAUDE_CODE | {name: {"effort": "low", "format": form} if name == "output_config" else form}
        sent, dropped = cleaned(MESSAGES, engine, given)
        assert sent["system"].startswith("You are an agent.\nAnswer with one JSON document")
        assert sent["system"].endswith(json.dumps(form["schema"]))
        assert "format" not in sent.get("output_config", {})
        assert {"format", "output_config", "output_format"} & set(dropped)
        assert cleaned(COUNT_TOKENS, engine, given)[0]["system"] == sent["system"]

    @pytest.mark.parametrize("payload", [CLAUDE_CODE, CODEX])
    def test_their_dropped_fields_are_counted_by_name(self, payload: Payload) -> None:
        path = MESSAGES if "messages" in payload else RESPONSES
        for engine in ENGINES:
            assert all(requests.fields.label(name) == name for name in cleaned(path, engine, payload)[1])

    def test_each_is_understood_as_a_stream_of_its_api(self) -> None:
        routing = Routing({"a": OLLAMA}, Aliases(None, ()))
        for path, payload in ((MESSAGES, CLAUDE_CODE), (RESPONSES, CODEX)):
            asked = requests.understood(path, json.dumps(payload).encode(), routing, TURN)
            assert asked.stream == ENDPOINTS[path].stream
            assert not asked.media
            assert asked.most_tokens is not None
            assert asked.concerns_abilities
        count = {key: CLAUDE_CODE[key] for key in ("model", "messages", "system", "tools", "thinking")}
        asked = requests.understood(COUNT_TOKENS, json.dumps(count).encode(), routing, TURN)
        assert (asked.stream, asked.is_counted_here) == ("", True)

    def test_a_conversation_is_known_as_it_grows(self) -> None:
        bare = {key: value for key, value in CODEX.items() if key != "prompt_cache_key"}
        later = bare | {"input": [*CODEX["input"], {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}]}
        turns = [self.understood(payload).turn for payload in (bare, later, bare | {"input": [USER]})]
        assert turns[0].own in turns[1].known
        assert turns[0].own not in turns[2].known
        assert beginning(CODEX) == beginning(later) != beginning(CODEX | {"input": [USER]})

    def understood(self, payload: Payload) -> requests.Asked:
        return requests.understood(RESPONSES, json.dumps(payload).encode(), Routing({"a": OLLAMA}, Aliases(None, ())), TURN)


class TestRefusals:
    @pytest.mark.parametrize("engine", ENGINES)
    @pytest.mark.parametrize(
        ("path", "fields", "param"),
        [
            (RESPONSES, {"previous_response_id": "r"}, "previous_response_id"),
            (RESPONSES, {"conversation": {"id": "c"}}, "conversation"),
            (RESPONSES, {"background": True}, "background"),
            (RESPONSES, {"prompt": {"id": "p"}}, "prompt"),
            (RESPONSES, {"top_logprobs": 2}, "top_logprobs"),
            (RESPONSES, {"include": ["message.output_text.logprobs"]}, "include"),
            (RESPONSES, {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}, "tool_choice"),
            (RESPONSES, {"tools": [{"type": "file_search"}]}, "tools"),
            (RESPONSES, {"tools": [5]}, "tools"),
            (MESSAGES, {"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
            (MESSAGES, {"container": "c"}, "container"),
            (MESSAGES, {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools"),
            (MESSAGES, {"tools": [{"description": "d"}]}, "tools"),
            (MESSAGES, {"max_tokens": "5"}, "max_tokens"),
            (RESPONSES, {"input": None}, "input"),
            (MESSAGES, {"messages": []}, "messages"),
            (COUNT_TOKENS, {"messages": None}, "messages"),
        ],
    )
    def test_what_cannot_be_honoured_is_named(self, engine: Engine, path: str, fields: Payload, param: str) -> None:
        payload = {"model": "a"} | ({"input": "hi"} if path == RESPONSES else {"messages": [USER]}) | fields
        with pytest.raises(errors.ApiError) as caught:
            requests.understood(path, json.dumps(payload).encode(), Routing({"a": ROUTES[engine]}, Aliases(None, ())), TURN)
        assert (caught.value.status, caught.value.body["error"]["param"]) == (400, param)
        assert str(caught.value).startswith(param.partition(".")[0])
        assert len(str(caught.value)) < 300

    @pytest.mark.parametrize(
        ("path", "choice"),
        [
            (RESPONSES, "required"),
            (RESPONSES, {"type": "function", "name": "f"}),
            (MESSAGES, {"type": "any"}),
            (MESSAGES, {"type": "tool", "name": "f"}),
            (MESSAGES, {"type": "auto", "disable_parallel_tool_use": True}),
        ],
    )
    def test_ollama_cannot_force_a_call(self, path: str, choice: object) -> None:
        tools = [TOOL, TOOL | {"name": "g"}] if path == MESSAGES else [FUNCTION, FUNCTION | {"name": "g"}]
        payload: Payload = {"model": "a", "input": "hi", "messages": [USER], "tools": tools, "tool_choice": choice}
        with pytest.raises(errors.ApiError, match="tool_choice: got"):
            cleaned(path, "ollama", payload)
        sent = cleaned(path, "openai", payload)[0]
        named = isinstance(choice, dict) and "name" in choice
        assert sent["tools"] == (tools[:1] if named else tools), "llama.cpp takes one by name for any"
        assert sent["tool_choice"] == ("required" if named and path == RESPONSES else choice)

    @pytest.mark.parametrize("engine", ENGINES)
    def test_no_call_at_all_is_honoured(self, engine: Engine) -> None:
        sent, _ = cleaned(MESSAGES, engine, {"model": "a", "messages": [USER], "tools": [TOOL], "tool_choice": {"type": "none"}})
        assert not sent.keys() & {"tools", "tool_choice"}

    def test_an_engine_without_the_endpoint_says_what_it_has(self) -> None:
        with pytest.raises(errors.ApiError, match=r"'a' at /v1/rerank, want a model whose server has it; this one has .*/v1/messages"):
            cleaned(RERANK, "ollama", {"model": "a", "query": "q", "documents": ["d"]})
        sent, dropped = cleaned(RERANK, "openai", {"model": "a", "query": "q", "documents": ["d"], "top_n": 1, "return_text": True})
        assert (sent, dropped) == ({"model": "a", "query": "q", "documents": ["d"], "top_n": 1}, ["return_text"])
        with pytest.raises(errors.ApiError, match="query: got nothing"):
            cleaned(RERANK, "openai", {"model": "a", "documents": ["d"]})


def block(kind: str, **fields: object) -> Payload:
    return {"type": kind, **fields}


TEXT = block("text", text="b")
USE = block("tool_use", id="c1", name="f", input={"x": 1})
RESULT = block("tool_result", tool_use_id="c1", content="out")


class TestHistoriesOfMessages:
    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ([USER, {"role": "assistant", "content": None}], [USER, {"role": "assistant", "content": ""}]),
            ([{"role": "user", "content": [TEXT, TEXT | {"citations": []}]}], [{"role": "user", "content": "b\nb"}]),
            (
                [{"role": "assistant", "content": [block("thinking", thinking="hm", signature="s"), TEXT, USE]}],
                [{"role": "assistant", "content": [block("thinking", thinking="hm"), TEXT, USE]}],
            ),
            (
                [{"role": "user", "content": [TEXT, RESULT | {"is_error": True, "cache_control": {}}]}],
                [{"role": "user", "content": [RESULT]}, {"role": "user", "content": "b"}],
            ),
            (
                [{"role": "user", "content": [RESULT | {"content": [block("text", text="o"), block("tool_reference", tool_name="t")]}]}],
                [{"role": "user", "content": [RESULT | {"content": "o"}]}],
            ),
            ([{"role": "user", "content": [RESULT | {"content": None}]}], [{"role": "user", "content": [RESULT | {"content": ""}]}]),
            ([{"role": "assistant", "content": [USE | {"input": None}]}], [{"role": "assistant", "content": [USE | {"input": {}}]}]),
            ([{"role": "assistant", "content": [block("redacted_thinking", data="x")]}], [{"role": "assistant", "content": ""}]),
            (
                [{"role": "user", "content": [block("document", source={"type": "text", "data": "d"})]}],
                [{"role": "user", "content": "d"}],
            ),
            ([USER, {"role": "system", "content": "s"}], [USER, {"role": "user", "content": "s"}]),
            ([{"role": "user", "content": [IMAGE | {"cache_control": {}}]}], [{"role": "user", "content": [IMAGE]}]),
        ],
    )  # fmt: skip
    def test_they_become_what_servers_take(self, given: list[Any], expected: list[Any]) -> None:
        assert messages.normalised({"messages": given}) == {"messages": expected}
        assert messages.normalised({"messages": expected}) == {"messages": expected}, "a second time changes nothing"

    @pytest.mark.parametrize("schema", [None, {}, {"type": "object"}, {"type": "object", "properties": None}])
    def test_a_tool_without_arguments_has_a_whole_schema(self, schema: object) -> None:
        assert messages.normalised({"messages": [], "tools": [TOOL | {"input_schema": schema}]})["tools"] == [TOOL]
        assert responses.normalised({"input": "a", "tools": [FUNCTION | {"parameters": schema}]}, "ollama")[0]["tools"] == [FUNCTION]

    def test_a_system_message_at_the_start_is_the_system_prompt(self) -> None:
        given: Payload = {"system": "a", "messages": [{"role": "system", "content": [TEXT]}, USER]}
        assert messages.normalised(given) == {"system": "a\nb", "messages": [USER]}

    @pytest.mark.parametrize(
        ("message", "where"),
        [
            (5, "messages[0]"),
            ({"role": "tool", "content": "a"}, "messages[0].role"),
            ({"role": "user", "content": 5}, "messages[0].content"),
            ({"role": "user", "content": [5]}, "messages[0].content[0]"),
            ({"role": "user", "content": [block("text")]}, "messages[0].content[0]"),
            ({"role": "user", "content": [block("image", source={"type": "url", "url": "https://a"})]}, "messages[0].content[0].source"),
            ({"role": "user", "content": [block("document", source={"type": "base64", "data": "x"})]}, "messages[0].content[0].source"),
            ({"role": "user", "content": [block("search_result")]}, "messages[0].content[0]"),
            ({"role": "assistant", "content": [block("tool_use", name="f")]}, "messages[0].content[0]"),
            ({"role": "user", "content": [RESULT | {"content": [5]}]}, "messages[0].content[0].content[0]"),
        ],
    )
    def test_what_has_no_meaning_is_refused_by_its_place(self, message: object, where: str) -> None:
        with pytest.raises(errors.ApiError) as caught:
            messages.normalised({"messages": [message]})
        assert str(caught.value).startswith(f"{where}: got")


def said(role: str, text: str) -> Payload:
    kind = "output_text" if role == "assistant" else "input_text"
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text}]}


CALL: Payload = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"x": 1}'}
OUTPUT: Payload = {"type": "function_call_output", "call_id": "c1", "output": "out"}
PICTURE: Payload = {"type": "input_image", "image_url": "data:image/png;base64,QUJD", "detail": "auto"}


class TestHistoriesOfResponses:
    @pytest.mark.parametrize("engine", ENGINES)
    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ([USER, {"role": "assistant", "content": "b"}], [said("user", "a"), said("assistant", "b")]),
            ([said("user", "a"), said("developer", "s")], [said("user", "a"), said("user", "s")]),
            ([CALL | {"id": "i", "status": "completed"}, OUTPUT], [CALL, OUTPUT]),
            ([CALL | {"arguments": '{"x": '}], [CALL | {"arguments": "{}"}]),
            ([OUTPUT | {"output": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]}], [OUTPUT | {"output": "a\nb"}]),
            ([OUTPUT | {"output": [PICTURE]}], [OUTPUT | {"output": ""}, {"type": "message", "role": "user", "content": [PICTURE]}]),
            (
                [{"type": "custom_tool_call", "call_id": "c1", "name": "p", "input": "x"}, OUTPUT | {"type": "custom_tool_call_output"}],
                [CALL | {"name": "p", "arguments": '{"input": "x"}'}, OUTPUT],
            ),
            ([{"type": "reasoning", "summary": [], "encrypted_content": "gAAA"}, said("user", "a")], [said("user", "a")]),
            ([{"type": "web_search_call", "id": "w"}, said("user", "a")], [said("user", "a")]),
            ([{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}], [said("assistant", "no")]),
            ([{"role": "user", "content": [{"type": "input_text", "text": t} for t in "ab"] + [PICTURE]}],
             [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a\nb"}, PICTURE]}]),
        ],
    )  # fmt: skip
    def test_they_become_what_servers_take(self, engine: Engine, given: list[Any], expected: list[Any]) -> None:
        assert responses.normalised({"input": given}, engine) == ({"input": expected}, [])
        assert responses.normalised({"input": expected}, engine) == ({"input": expected}, []), "a second time changes nothing"

    def test_thoughts_are_where_each_server_reads_them(self) -> None:
        item = {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "hm"}], "encrypted_content": "gAAA"}
        assert responses.normalised({"input": [item]}, "ollama")[0]["input"][0]["encrypted_content"] == "hm"
        assert responses.normalised({"input": [item]}, "openai")[0]["input"][0]["content"] == [{"type": "reasoning_text", "text": "hm"}]

    @pytest.mark.parametrize(
        ("item", "where"),
        [
            (5, "input[0]"),
            ({"type": "item_reference", "id": "m"}, "input[0]"),
            ({"role": "tool", "content": "a"}, "input[0]"),
            ({"type": "function_call", "name": "f"}, "input[0]"),
            ({"role": "user", "content": 5}, "input[0].content"),
            ({"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}, "input[0].content[0]"),
            ({"role": "user", "content": [{"type": "input_image", "image_url": "https://a"}]}, "input[0].content[0].image_url"),
        ],
    )
    def test_what_has_no_meaning_is_refused_by_its_place(self, item: object, where: str) -> None:
        with pytest.raises(errors.ApiError) as caught:
            responses.normalised({"input": [item]}, "ollama")
        assert str(caught.value).startswith(f"{where}: got")

    def test_tools_among_the_items_are_tools(self) -> None:
        items = [{"type": "additional_tools", "role": "developer", "tools": [FUNCTION, {"type": "custom", "name": "p"}]}, said("user", "a")]
        expected = {"input": [said("user", "a")], "tools": [FUNCTION]}
        assert responses.normalised({"input": items}, "openai") == (expected, ["tools.custom"])

    def test_groups_of_functions_go_to_ollama_alone(self) -> None:
        group: Payload = {"type": "namespace", "name": "n", "tools": [FUNCTION, {"type": "custom", "name": "p"}]}
        assert responses.normalised({"input": "a", "tools": [group]}, "ollama") == (
            {"input": "a", "tools": [{"type": "namespace", "name": "n", "tools": [FUNCTION]}]},
            ["tools.custom"],
        )
        assert responses.normalised({"input": "a", "tools": [group]}, "openai") == ({"input": "a"}, ["tools.namespace"])

    def test_the_form_of_an_answer_is_where_each_server_reads_it(self) -> None:
        schema = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
        as_object, as_schema = ({"input": "a", "text": {"format": form}} for form in ({"type": "json_object"}, schema))
        assert responses.normalised(as_object, "ollama")[0]["text"]["format"]["schema"] == {"type": "object"}
        assert responses.normalised(as_schema, "ollama")[0] == as_schema
        assert responses.normalised(as_object, "openai")[0]["response_format"] == {"type": "json_object"}
        sent = responses.normalised(as_schema, "openai")[0]["response_format"]
        assert sent == {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True}}


RICH: dict[str, Payload] = {
    MESSAGES: CLAUDE_CODE
    | {
        "messages": [
            {"role": "user", "content": [TEXT, IMAGE]},
            {"role": "assistant", "content": [block("thinking", thinking="hm"), USE]},
            {"role": "user", "content": [RESULT | {"content": [TEXT, IMAGE]}, TEXT]},
        ]
    },
    RESPONSES: CODEX
    | {
        "input": [*CODEX["input"], {"type": "reasoning", "summary": [{"text": "hm"}]}, CALL, OUTPUT | {"output": [PICTURE]}],
        "tools": [*CODEX["tools"], {"type": "namespace", "name": "n", "tools": [FUNCTION]}],
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {}}},
    },
    RERANK: {"model": "b", "query": "q", "documents": ["d"], "top_n": 1},
}
"""With everything that an endpoint takes."""
ODD: list[Any] = [
    None,
    5,
    -1,
    1e9,
    True,
    "",
    "\ud800",
    "user",
    [],
    {},
    [5],
    ["a"],
    {"type": "text"},
    {"type": 5},
    {"type": ["a"]},
    [[]],
    TEXT,
]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every object and list within a value, with each of its keys."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(value[key])


@pytest.mark.parametrize("path", [MESSAGES, COUNT_TOKENS, RESPONSES, RERANK])
def test_no_request_that_is_a_little_wrong_is_a_fault_of_ours(path: str) -> None:
    """Each either goes on, and can be counted, or is refused."""
    numbers, routing = random.Random(path), Routing({"a": OLLAMA, "b": OTHER}, Aliases(None, ()))  # noqa: S311
    refused = 0
    for _ in range(500):
        payload = copy.deepcopy(RICH[MESSAGES if path == COUNT_TOKENS else path]) | {"model": numbers.choice("ab")}
        for _ in range(numbers.randint(1, 3)):
            holder, key = numbers.choice([(holder, key) for holder, key in places(payload) if key != "model"])
            holder[key] = copy.deepcopy(numbers.choice(ODD))
        try:
            asked = requests.understood(path, json.dumps(payload).encode(), routing, TURN)
        except errors.ApiError as error:
            assert encode(error.shaped("anthropic"))
            refused += 1
            continue
        assert encode(asked.body)
        if asked.route.engine == "ollama":
            assert encode(translation.counting_request(path, asked.body))
    assert 0 < refused < 500


class TestCounting:
    def test_messages_are_counted_in_ollamas_form(self) -> None:
        given = CLAUDE_CODE | {
            "thinking": {"type": "enabled", "budget_tokens": 9},
            "messages": [
                {"role": "user", "content": [block("text", text="look"), IMAGE]},
                {"role": "assistant", "content": [block("thinking", thinking="hm"), USE]},
                {"role": "user", "content": [RESULT, block("text", text="and?")]},
            ],
        }
        path, body = translation.counting_request(MESSAGES, cleaned(MESSAGES, "ollama", given)[0])
        assert (path, body["think"], body["options"]) == ("/api/chat", True, {"num_predict": 1})
        assert body["messages"] == [
            {"role": "system", "content": "You are an agent."},
            {"role": "user", "content": "look", "images": ["QUJD"]},
            {
                "role": "assistant",
                "content": "",
                "thinking": "hm",
                "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": {"x": 1}}}],
            },
            {"role": "tool", "content": "out", "tool_call_id": "c1"},
            {"role": "user", "content": "and?"},
        ]
        schema = {"type": "object", "properties": {}}
        assert body["tools"] == [{"type": "function", "function": {"name": "f", "description": "d", "parameters": schema}}]

    @pytest.mark.parametrize(
        ("thinking", "effort", "think"),
        [("disabled", "high", False), ("adaptive", "xhigh", "high"), ("adaptive", "odd", None), (None, "low", "low"), (None, None, None)],
    )
    def test_the_wish_to_think_is_read_as_ollama_reads_it(self, thinking: str | None, effort: str | None, think: object) -> None:
        body: Payload = {"messages": [USER], "thinking": {"type": thinking}, "output_config": {"effort": effort}}
        assert translation.counting_request(COUNT_TOKENS, body)[1].get("think") == think

    def test_responses_are_counted_in_ollamas_form(self) -> None:
        thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}
        items = [*CODEX["input"], thought, CALL, CALL | {"call_id": "c2"}, OUTPUT, OUTPUT | {"call_id": "c2"}, said("assistant", "b")]
        group: Payload = {"type": "namespace", "name": "n", "tools": [FUNCTION]}
        given = CODEX | {"input": items, "reasoning": {"effort": "xhigh"}, "tools": [group]}
        path, body = translation.counting_request(RESPONSES, cleaned(RESPONSES, "ollama", given)[0])
        call = {"function": {"name": "f", "arguments": {"x": 1}}}
        assert (path, body["think"]) == ("/api/chat", "max")
        assert body["messages"] == [
            {"role": "system", "content": "You are an agent.\n\nRules."},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "", "tool_calls": [{"id": "c1", **call}, {"id": "c2", **call}], "thinking": "hm"},
            {"role": "tool", "content": "out", "tool_call_id": "c1"},
            {"role": "tool", "content": "out", "tool_call_id": "c2"},
            {"role": "assistant", "content": "b"},
        ]
        assert body["tools"][0]["function"]["name"] == "n.f"
        assert translation.counting_request(RESPONSES, {"input": "a"})[1]["messages"] == [USER]

    def test_size_is_an_upper_bound_but_for_images(self) -> None:
        text = "g\u00e4nge \U0001f600"
        plain = {"system": text, "messages": [{"role": "user", "content": text}]}
        assert (size.most_tokens(MESSAGES, plain) or 0) > 2 * len(text.encode())
        assert (size.most_tokens(RESPONSES, {"instructions": text, "input": text}) or 0) >= 2 * len(text.encode())
        within = {"messages": [{"role": "user", "content": [RESULT | {"content": [IMAGE]}]}]}
        assert size.most_tokens(MESSAGES, within) is None
        assert size.most_tokens(COUNT_TOKENS, within) is None
        assert size.most_tokens(RESPONSES, {"input": [{"type": "message", "role": "user", "content": [PICTURE]}]}) is None

    @pytest.mark.parametrize(("path", "name"), [(MESSAGES, "max_tokens"), (RESPONSES, "max_output_tokens")])
    def test_the_limit_of_an_answer_has_the_apis_own_name(self, path: str, name: str) -> None:
        assert counting._answer_limit(path, {name: 5}) == 5
        assert counting._answer_limit(path, {}) is None
        assert counting._with_limit(path, {name: 5}, 3) == {name: 3}
        with pytest.raises(errors.ApiError, match=f"{name}: got 0"):
            counting._answer_limit(path, {name: 0})

    @pytest.mark.parametrize(
        ("path", "payload", "left"),
        [
            (MESSAGES, {"messages": [], "thinking": {"type": "enabled"}, "output_config": {"effort": "low"}}, {"messages"}),
            (RESPONSES, {"input": "a", "reasoning": {"effort": "low"}}, {"input"}),
        ],
    )
    def test_a_wish_to_think_is_dropped_for_a_model_that_cannot(self, path: str, payload: Payload, left: set[str]) -> None:
        kept, dropped = abilities.adapted(payload, Abilities(frozenset({"completion"})), "m", "")
        assert set(kept) == left
        assert set(dropped) == payload.keys() - left
        with pytest.raises(errors.ApiError, match=f"{ENDPOINTS[path].prompt}: got an image"):
            abilities.adapted(payload, Abilities(frozenset({"completion"})), "m", ENDPOINTS[path].prompt)
        with pytest.raises(errors.ApiError, match="tools: got tools"):
            abilities.adapted(payload | {"tools": [TOOL]}, Abilities(frozenset({"completion"})), "m", "")


def event(name: str, **data: object) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n".encode()


MESSAGE = [
    event("message_start", message={"usage": {"input_tokens": 2, "cache_read_input_tokens": 40, "output_tokens": 0}}),
    event("content_block_delta", delta={"text": 'the "usage" and "error" of it'}),
    event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 3}),
    event("message_stop"),
]
RESPONSE = [
    event("response.created", response={"error": None, "usage": None, "tools": [{"parameters": {"type": "error"}}]}),
    event("response.output_text.delta", delta="a"),
    event("response.completed", response={"usage": {"input_tokens": 7, "output_tokens": 3, "input_tokens_details": {"cached_tokens": 5}}}),
]


class TestReader:
    @pytest.mark.parametrize("piece", [1, 7, 10_000])
    @pytest.mark.parametrize(("stream", "events", "used"), [("messages", MESSAGE, (42, 3, 40)), ("responses", RESPONSE, (7, 3, 5))])
    def test_a_stream_passes_in_any_pieces_and_is_counted(
        self, piece: int, stream: str, events: list[bytes], used: tuple[int, int, int]
    ) -> None:
        whole = b"".join(events)
        reader = Reader(stream, drop_usage=True)
        assert b"".join(reader.feed(whole[start : start + piece]) for start in range(0, len(whole), piece)) == whole
        assert reader.rest() == b""
        assert not reader.between
        assert (reader.prompt_tokens, reader.completion_tokens, reader.cached_tokens) == used

    @pytest.mark.parametrize(("stream", "events"), [("messages", MESSAGE), ("responses", RESPONSE)])
    def test_without_its_last_event_it_is_not_whole(self, stream: str, events: list[bytes]) -> None:
        for count in range(len(events)):
            reader = Reader(stream)
            for each in events[:count]:
                reader.feed(each)
            assert reader.between
            assert reader.rest() is None

    @pytest.mark.parametrize(
        ("stream", "name"),
        [("messages", "error"), ("responses", "error"), ("responses", "response.failed"), ("responses", "response.incomplete")],
    )
    def test_a_failure_that_the_server_says_ends_it(self, stream: str, name: str) -> None:
        reader = Reader(stream)
        reader.feed(event(name).replace(b"\n", b"\r\n"))
        assert reader.rest() == b""

    @pytest.mark.parametrize(("stream", "events"), [("messages", MESSAGE), ("responses", RESPONSE)])
    def test_a_server_may_say_the_end_of_chat_behind_it(self, stream: str, events: list[bytes]) -> None:
        reader = Reader(stream)
        reader.feed(b"".join([*events, b"data: [DONE]\n\n"]))
        assert reader.rest() == b""

    def test_a_later_count_is_the_right_one(self) -> None:
        """Ollama begins with an estimate."""
        reader = Reader("messages")
        reader.feed(event("message_start", message={"usage": {"input_tokens": 2}}))
        reader.feed(event("message_delta", usage={"input_tokens": 31, "output_tokens": 4}))
        assert (reader.prompt_tokens, reader.completion_tokens) == (31, 4)

    @pytest.mark.parametrize(
        ("usage", "used"),
        [
            ({"input_tokens": 1, "cache_read_input_tokens": 6, "output_tokens": 3}, (7, 3, 6)),
            ({"input_tokens": 7, "output_tokens": 3, "input_tokens_details": {"cached_tokens": 5}}, (7, 3, 5)),
            ({"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 5}}, (7, 3, 5)),
            ({"prompt_tokens": 7, "total_tokens": 7}, (7, 0, None)),
            ({"input_tokens": "x", "cache_read_input_tokens": None, "prompt_tokens_details": 5}, (0, 0, None)),
        ],
    )
    def test_a_document_is_counted(self, usage: Payload, used: tuple[int, int, int | None]) -> None:
        reader = Reader("")
        document = json.dumps({"type": "message", "message": "text", "response": 5, "usage": usage}).encode()
        reader.feed(document)
        assert reader.rest() == document
        assert (reader.prompt_tokens, reader.completion_tokens, reader.cached_tokens) == used

    @pytest.mark.parametrize("said", [-3, 2**53, 10**400, True, "7", None])
    def test_what_is_no_count_is_not_counted(self, said: object) -> None:
        reader = Reader("")
        usage = {"prompt_tokens": said, "completion_tokens": said, "prompt_tokens_details": {"cached_tokens": said}}
        reader.feed(json.dumps({"usage": usage}).encode())
        assert reader.rest()
        assert (reader.prompt_tokens, reader.completion_tokens, reader.cached_tokens) == (0, 0, None)


class TestStreams:
    FULL = errors.context_exceeded("m", 3000, 2048)

    def test_signs_of_life_are_what_clients_skip(self) -> None:
        skipped = [list(SSEDecoder().iter_bytes(iter([STREAMS[name].sign]))) for name in ("sse", "responses")]
        assert skipped == [[], []]
        [ping] = SSEDecoder().iter_bytes(iter([STREAMS["messages"].sign]))
        assert (ping.event, ping.json()) == ("ping", {"type": "ping"})

    def test_a_failure_of_messages_is_their_error_event(self) -> None:
        [found] = SSEDecoder().iter_bytes(iter([STREAMS["messages"].failure(self.FULL, "r1", "m")]))
        assert found.event == "error"
        error = {"type": "invalid_request_error", "message": str(self.FULL)}
        assert found.json() == {"type": "error", "error": error, "request_id": "r1"}

    def test_a_failure_of_a_response_is_read_by_the_library_and_by_codex(self) -> None:
        first, second = SSEDecoder().iter_bytes(iter([STREAMS["responses"].failure(self.FULL, "r1", "m")]))
        assert (first.event, first.json()["error"]["code"], first.json()["code"]) == ("error", *["context_length_exceeded"] * 2)
        assert (second.event, second.json()["type"]) == ("response.failed", "response.failed")
        assert second.json()["response"]["error"] == {"code": "context_length_exceeded", "message": str(self.FULL)}

    @pytest.mark.parametrize("stream", STREAMS)
    def test_a_failure_ends_a_stream_and_a_sign_does_not(self, stream: str) -> None:
        reader = Reader(stream)
        if stream != "ndjson":
            reader.feed(STREAMS[stream].sign)
            assert reader.between
        reader.feed(STREAMS[stream].failure(self.FULL, "r1", "m"))
        assert reader.rest() == b""

    def test_every_stream_of_an_endpoint_is_known(self) -> None:
        assert {each.stream for each in ENDPOINTS.values() if each.stream} == set(STREAMS)


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "kind"),
        [
            (errors.unauthorized(), "authentication_error"),
            (errors.unknown_model("x", ["a"]), "not_found_error"),
            (errors.too_busy("a", 2), "rate_limit_error"),
            (errors.unavailable("a", 2), "overloaded_error"),
            (errors.too_large("5 bytes"), "request_too_large"),
            (errors.context_exceeded("a", 5, 4), "invalid_request_error"),
            (errors.too_slow(), "invalid_request_error"),
            (errors.internal(), "api_error"),
            (errors.upstream_failed("a", "nothing"), "api_error"),
            (errors.upstream_said(529, b'{"type":"error","error":{"type":"x","message":"full"}}', None), "overloaded_error"),
        ],
    )
    def test_they_have_anthropics_types(self, error: errors.ApiError, kind: str) -> None:
        error.headers["x-request-id"] = "r1"
        response = error.response("anthropic")
        assert json.loads(response.body or b"") == {  # pyright: ignore[reportArgumentType]
            "type": "error",
            "error": {"type": kind, "message": str(error)},
            "request_id": "r1",
        }
        assert response.headers["request-id"] == "r1"

    def test_the_words_of_a_server_stay(self) -> None:
        refusal = errors.upstream_said(400, b'{"type":"error","error":{"type":"invalid_request_error","message":"no"}}', None)
        assert (str(refusal), refusal.status) == ("no", 400)

    def test_the_document_names_the_shape_of_each_api(self) -> None:
        document = openapi.document({"a": OLLAMA, "b": OTHER})
        shapes = {path: document["paths"][path]["post"]["responses"]["default"]["$ref"].rpartition("/")[2] for path in ENDPOINTS}
        assert {path: name for path, name in shapes.items() if name == "AnthropicError"}.keys() == {MESSAGES, COUNT_TOKENS}
        schemas = document["components"]["schemas"]
        assert schemas["OllamaMessage"]["properties"]["model"]["enum"] == ["a"]
        assert schemas["Message"]["properties"]["model"]["enum"] == ["b"]
        assert "anyOf" not in document["paths"][RERANK]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert set(models.endpoints("ollama")) == set(ENDPOINTS) - {RERANK}
