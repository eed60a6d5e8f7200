"""What a schema may ask of a server, and what a pattern: honest ones pass, those that would hold up or end an engine are refused by name."""

from typing import Any

import pytest

from api_server import errors, patterns, requests, schemas
from api_server.paths import Payload, encode
from api_server.settings import Route

ROUTE = Route(url="http://a:1", engine="openai", context_length=2048)
PATTERN = {"type": "string", "pattern": "^(((|a){0,2000}){0,2000}){0,2000}$"}


def tower(height: int, name: str = "anyOf") -> Payload:
    """References that double at each step."""
    steps: Payload = {f"r{i}": {name: [{"$ref": f"#/$defs/r{i + 1}"}] * 2} for i in range(height)}
    return {"$defs": steps | {f"r{height}": {"type": "string"}}, "$ref": "#/$defs/r0"}


def chain(length: int) -> Payload:
    """References that lead to each other, which the properties name from the last to the first, so that each is short where it is seen."""
    steps: Payload = {f"r{i}": {"type": "array", "items": {"$ref": f"#/$defs/r{i + 1}"}} for i in range(length)}
    properties = {f"p{i}": {"$ref": f"#/$defs/r{i}"} for i in reversed(range(length))}
    return {"$defs": steps | {f"r{length}": {"type": "string"}}, "type": "object", "required": [*properties], "properties": properties}


DEAR = {
    "references that double": tower(28),
    "the same by allOf": tower(28, "allOf"),
    "a chain": chain(1000),
    "an enum": {"enum": [str(i) for i in range(5_000)]},
    "optional properties": {"type": "object", "properties": {str(i): {"type": "string"} for i in range(3000)}},
    "a pattern": PATTERN,
    "parts that may be empty": {"type": "string", "pattern": "^" + "(|a)" * 2000 + "$"},
}
HONEST = [
    {"type": "object", "properties": {"pattern": {"type": "string"}, "enum": {"type": "array", "items": {"type": "string"}}}},
    {"type": "string", "enum": [str(i) for i in range(1000)]},
    {"$defs": {"tree": {"type": "object", "properties": {"of": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}}}, "$ref": "#/$defs/tree"},
    {"type": ["string", "null"], "default": PATTERN, "examples": [PATTERN]},
    {"type": "object", "properties": {str(i): {"anyOf": [{"type": "string"}, {"type": "null"}]} for i in range(200)}},
    {"$ref": "#/nowhere"},
    {"$ref": "https://elsewhere.example/schema"},
    {"$ref": "#"},
    {"items": True, "additionalProperties": False, "properties": None, "enum": "a", "required": 5, "anyOf": {}, "prefixItems": [3]},
    {},
]  # fmt: skip


@pytest.mark.parametrize("name", DEAR)
def test_a_schema_that_would_hold_up_its_server_is_refused_wherever_it_stands(name: str) -> None:
    schema = DEAR[name]
    for field, fields in {
        "response_format": {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}},
        "json_schema": {"json_schema": schema},
        "format": {"format": schema},
        "text": {"text": {"format": {"type": "json_schema", "schema": schema}}},
        "tools": {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": schema} | schema.get("$defs", {}), **schema}}}]},
    }.items():  # fmt: skip
        with pytest.raises(errors.ApiError) as refused:
            schemas.check(fields)
        assert (refused.value.status, refused.value.body["error"]["param"]) == (400, field)
    for tool in ({"type": "function", "name": "f", "parameters": schema}, {"name": "f", "input_schema": schema}):
        for tools in ([tool], [{"type": "namespace", "name": "n", "tools": [tool]}]):
            with pytest.raises(errors.ApiError, match=r"^tools\[0\]"):
                schemas.check({"tools": tools})


@pytest.mark.parametrize("schema", HONEST)
def test_an_honest_schema_passes(schema: dict[str, Any]) -> None:
    schemas.check({"format": schema, "response_format": {"type": "json_object", "schema": schema}})


def test_many_tools_pass() -> None:
    properties = {str(i): {"type": "string", "enum": ["a", "b"], "pattern": "^[a-z]+(-[a-z]+)*$"} for i in range(30)}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": properties}}}
    schemas.check({"tools": [tool] * 500})


def test_the_format_may_be_a_word() -> None:
    schemas.check({"format": "json", "response_format": {"type": "text"}, "text": {"format": {"type": "text"}}})


@pytest.mark.parametrize(
    "pattern",
    [
        r"^[a-z]{1,64}$", r"^(\d{1,3}\.){3}\d{1,3}$", "^.{0,2000}$", r"^([a-z0-9-]+\.)*[a-z]+$", r"^[^\]]+]$", "^[]a]{3}(?:x|y)?$",
        r"^(https?|ftp)://[^\s/$.?#].[^\s]*$", "^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$", "^(" + "|".join(f"zone-{i}" for i in range(200)) + ")$",
        r"^\+?\d( ?\d){6,14}$", "", "(", "[", "\\", "a{", "a{x}", "a{,}", "a{3,}", ")", "|", r"^(?!x)a\p{L}$",
    ],
)  # fmt: skip
def test_honest_and_broken_patterns_are_cheap(pattern: str) -> None:
    assert patterns.is_cheap(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "^" + "(|a)" * 100 + "$", "^" + "a?" * 100 + "$", "(a?)?" * 20, "((((((x?){2000}){2000}){2000}){2000}){2000})", "(a|b*)*", "(" * 60 + ")" * 60,
        "|".join("a" * 900), "x" * 5000, "(x(|){10})", "(|){9999999}", "(a?){0,99999999}",
    ],
)  # fmt: skip
def test_dear_patterns_are_not(pattern: str) -> None:
    assert not patterns.is_cheap(pattern)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("grammar", 'root ::= "a"'), ("functions", [{"name": "f"}]), ("function_call", {"name": "f"}), ("modalities", ["text", "audio"]),
        ("audio", {"voice": "a"}), ("web_search_options", {}), ("tool_choice", {"type": "function", "function": {"name": "g"}}),
        ("tool_choice", {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}), ("tools", [{"type": "custom", "custom": {"name": "f"}}]),
        ("tools", [{"type": "function", "function": {"name": 5}}]), ("tools", [5]),
    ],
)  # fmt: skip
def test_what_no_engine_honours_is_refused_by_name(field: str, value: object) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    payload: Payload = {"model": "a", "messages": [{"role": "user", "content": "a"}], "tools": tools, field: value}
    with pytest.raises(errors.ApiError, match=rf"^{field}(\[0\])?: got .*, want ") as refused:
        requests.cleaned("/v1/chat/completions", payload, ROUTE, "a")
    assert refused.value.body["error"]["param"] == field


def test_tools_have_their_own_fields_alone_and_a_choice_by_name_is_all_that_is_sent() -> None:
    tools = [
        {"type": "function", "Function": {"name": "x"}, "function": {"name": "f", "Name": "x", "description": "d", "strict": True}},
        {"function": {"name": "g", "parameters": {"type": "object", "properties": None, "$defs": {"A": {}}}}, "items": 5},
    ]
    payload: Payload = {"model": "a", "messages": [{"role": "user", "content": "a"}], "tools": tools}
    sent, _ = requests.cleaned("/v1/chat/completions", payload, ROUTE, "a")
    empty = {"type": "object", "properties": {}}
    assert sent["tools"] == [
        {"type": "function", "function": {"name": "f", "description": "d", "strict": True, "parameters": empty}},
        {"type": "function", "function": {"name": "g", "parameters": empty | {"$defs": {"A": {}}}}},
    ]
    chosen, _ = requests.cleaned(
        "/v1/chat/completions", payload | {"tool_choice": {"type": "function", "function": {"name": "g"}}}, ROUTE, "a"
    )
    assert (chosen["tools"], chosen["tool_choice"]) == (sent["tools"][1:], "required")


@pytest.mark.parametrize("said", ['{"error": {"message": "why", "code": 400}}', "why"])
def test_the_engines_words_come_out_of_ollamas_envelope(said: str) -> None:
    body = encode({"error": {"message": said, "type": "invalid_request_error"}})
    assert errors.upstream_said(400, body, None).body["error"]["message"] == "why"
