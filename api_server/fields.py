"""The fields of a request that go on, by exact name, for each endpoint and kind of server. All others are dropped, and counted by name.

Ollama reads field names without regard to case, and takes U+017F for s: with a list of what is forbidden, `Keep_Alive` would pass, and
unload the model for everybody. The names and their types are those of models.py.
"""

from typing import Any

from api_server import errors
from api_server.models import MODELS, Engine
from api_server.paths import CHAT, COMPLETIONS, MESSAGES, NATIVE_GENERATE, RESPONSES, Payload
from api_server.responses import DROPPED_TOOLS

ALLOWED: dict[tuple[str, Engine], frozenset[str]] = {key: frozenset(model.__struct_fields__) for key, model in MODELS.items()}
OPTIONS = frozenset(
    {"seed", "stop", "num_predict", "top_k", "top_p", "min_p", "typical_p", "temperature"}
    | {"repeat_last_n", "repeat_penalty", "presence_penalty", "frequency_penalty"}
)
"""Options of one answer. The others belong to the loaded model: another num_ctx reloads it for everybody."""
THINKING = frozenset({"reasoning_effort", "reasoning", "thinking", "think", "output_config"})
"""How clients ask a model to think. A model that cannot think gets none of them."""
_INNER = {
    "options": OPTIONS,
    "reasoning": {"effort"},
    "stream_options": {"include_usage"},
    "text": {"format"},
    "thinking": {"type", "budget_tokens"},
    "output_config": {"effort"},
}
"""Objects of which a part goes on."""
_OF_AGENTS = (
    {"client_metadata", "context_management", "display", "include", "max_tool_calls", "prompt_cache_key", "prompt_cache_retention"}
    | {"output_format", "safety_identifier", "summary", "truncation", "verbosity"}
    | {f"tools.{kind}" for kind in (*DROPPED_TOOLS, "namespace")}
)
"""What Codex and Claude Code send by themselves, and no server here knows."""
COUNTED = (
    THINKING
    | frozenset().union(*ALLOWED.values())
    | OPTIONS
    | _OF_AGENTS
    | {"keep_alive", "shift", "truncate", "options", "store", "service_tier"}
)
"""Names that a metric may have as a label; every other name is `other`, so that no client can make new series."""
_UNKNOWN: dict[str, tuple[tuple[Any, ...], str]] = {
    "n": ((1,), "1; this model gives one answer a request"),
    "best_of": ((1,), "1; this model gives one answer a request"),
    "echo": ((False,), "false; Ollama does not repeat a prompt"),
    "tool_choice": (("auto", "none"), "auto or none; Ollama cannot force a call"),
    "parallel_tool_calls": ((True,), "true; Ollama cannot hold a model to one call at a time"),
    "functions": (([],), "tools in their place; this is their older form"),
    "function_call": (("auto", "none"), "tools and tool_choice in their place; this is their older form"),
    "modalities": ((["text"],), "text; this model writes text alone"),
    "audio": ((), "nothing; this model writes text alone"),
    "web_search_options": ((), "nothing; the fleet searches nowhere"),
    "grammar": (("",), "response_format with a JSON schema; a grammar is a program, which could keep its server busy for ever"),
    "json_schema": (({},), "response_format in its place; this is llama.cpp's own name"),
}
"""Fields of OpenAI's API that change an answer's meaning and that Ollama passes over without a word: the values that change nothing, and
what to send instead of any other."""
_UNKNOWN_TO_ALL = {name: _UNKNOWN[name] for name in ("functions", "function_call", "modalities", "audio", "web_search_options", "grammar")}
"""Those that no other engine knows either."""
_CHOICE: dict[str, tuple[tuple[Any, ...], str]] = {
    "tool_choice": (("auto", "none", {"type": "auto"}, {"type": "none"}), "auto or none; Ollama cannot force a call, or hold to one")
}
_LOGPROBS = "none of them; ask for them at POST /v1/chat/completions"
_UNKNOWN_ANYWHERE: dict[str, dict[str, tuple[tuple[Any, ...], str]]] = {
    RESPONSES: {
        "previous_response_id": ((), "nothing; no answer is kept here: send the whole conversation as input"),
        "conversation": ((), "nothing; no conversation is kept here: send the whole of it as input"),
        "background": ((False,), "false; no answer is kept here: wait for it, or ask for a stream"),
        "prompt": ((), "instructions and input in its place; no template is kept here"),
        "top_logprobs": ((0,), _LOGPROBS),
    },
    NATIVE_GENERATE: {
        "template": (("",), "raw and a prompt in the model's own form; a template is a program, which could keep its server busy for ever"),
    },
    MESSAGES: {
        "mcp_servers": (([],), "tools in their place; nothing here calls other servers for a client"),
        "container": ((), "nothing; nothing here runs code for a client"),
    },
}
"""The same of other endpoints, whatever the kind of server."""


def label(name: str) -> str:
    """The metric's label for a dropped field."""
    return name if name in COUNTED else "other"


def kept(path: str, payload: Payload, engine: Engine) -> tuple[Payload, list[str]]:
    """The fields that go on, and the names of those that do not.

    Raises ApiError 400 on one that changes the answer's meaning and cannot be honoured.
    """
    allowed = ALLOWED[path, engine]
    payload = _honoured(path, payload, engine)
    rest = {key: value for key, value in payload.items() if key in allowed}
    dropped = [key for key in payload if key not in allowed]
    for key, inner in _INNER.items():
        if isinstance(rest.get(key), dict):
            dropped += [name for name in rest[key] if name not in inner]
            rest[key] = {name: value for name, value in rest[key].items() if name in inner}
    return rest, dropped


def _honoured(path: str, payload: Payload, engine: Engine) -> Payload:
    """What a server does not know, left out where that changes nothing. Raises ApiError 400 on the rest, by name."""
    if path in (CHAT, COMPLETIONS):
        return _left_out(path, payload, _UNKNOWN if engine == "ollama" else _UNKNOWN_TO_ALL)
    if path not in _UNKNOWN_ANYWHERE:
        return payload
    unknown = _UNKNOWN_ANYWHERE[path]
    _refuse_parts(payload)
    # llama.cpp passes over Anthropic's way to say none.
    no_tools = payload.get("tool_choice") == {"type": "none"}
    return _left_out(path, payload, unknown | _CHOICE if engine == "ollama" or no_tools else unknown)


def _refuse_parts(payload: Payload) -> None:
    """Of fields that otherwise change nothing. Raises ApiError 400."""
    include = payload.get("include")
    if isinstance(include, list) and "message.output_text.logprobs" in include:
        raise errors.bad_request(f"include: got message.output_text.logprobs, want {_LOGPROBS}", "include")


def _left_out(path: str, payload: Payload, unknown: dict[str, tuple[tuple[Any, ...], str]]) -> Payload:
    if unknown.keys().isdisjoint(payload):
        return payload
    for name, (same, want) in unknown.items():
        value = payload.get(name)
        if value is not None and value not in same and (name != "parallel_tool_calls" or payload.get("tools")):
            raise errors.bad_request(f"{name}: got {errors.shown(value)}, want {want}", name)
    no_tools = "tool_choice" in unknown and payload.get("tool_choice") in ("none", {"type": "none"})
    tools = path != COMPLETIONS and not no_tools
    return {key: value for key, value in payload.items() if key not in unknown and (tools or key != "tools")}
