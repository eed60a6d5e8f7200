"""The fields of a request that go on, by exact name, for each endpoint and kind of server. All others are dropped, and counted by name.

Ollama reads field names without regard to case, and takes U+017F for s: with a list of what is forbidden, `Keep_Alive` would pass, and
unload the model for everybody. The names and their types are those of models.py.
"""

from typing import Any

from api_server import errors
from api_server.models import MODELS, Engine
from api_server.paths import CHAT, COMPLETIONS, Payload

ALLOWED: dict[tuple[str, Engine], frozenset[str]] = {key: frozenset(model.__struct_fields__) for key, model in MODELS.items()}
OPTIONS = frozenset(
    {"seed", "stop", "num_predict", "top_k", "top_p", "min_p", "typical_p", "temperature"}
    | {"repeat_last_n", "repeat_penalty", "presence_penalty", "frequency_penalty"}
)
"""Options of one answer. The others belong to the loaded model: another num_ctx reloads it for everybody."""
THINKING = frozenset({"reasoning_effort", "reasoning", "thinking", "think"})
"""How clients ask a model to think. A model that cannot think gets none of them."""
COUNTED = (
    THINKING | frozenset().union(*ALLOWED.values()) | OPTIONS | {"keep_alive", "shift", "truncate", "options", "store", "service_tier"}
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
}
"""Fields of OpenAI's API that change an answer's meaning and that Ollama passes over without a word: the values that change nothing, and
what to send instead of any other."""


def label(name: str) -> str:
    """The metric's label for a dropped field."""
    return name if name in COUNTED else "other"


def kept(path: str, payload: Payload, engine: Engine) -> tuple[Payload, list[str]]:
    """The fields that go on, and the names of those that do not.

    Raises ApiError 400 on one that changes the answer's meaning and cannot be honoured.
    """
    allowed = ALLOWED[path, engine]
    if engine == "ollama" and path in (CHAT, COMPLETIONS):
        payload = _honoured(path, payload)
    rest = {key: value for key, value in payload.items() if key in allowed}
    dropped = [key for key in payload if key not in allowed]
    for key, inner in (("options", OPTIONS), ("reasoning", {"effort"}), ("stream_options", {"include_usage"})):
        if isinstance(rest.get(key), dict):
            dropped += [name for name in rest[key] if name not in inner]
            rest[key] = {name: value for name, value in rest[key].items() if name in inner}
    return rest, dropped


def _honoured(path: str, payload: Payload) -> Payload:
    """What Ollama's OpenAI layer does not know, left out where that changes nothing. Raises ApiError 400 on the rest, by name."""
    if _UNKNOWN.keys().isdisjoint(payload):
        return payload
    for name, (same, want) in _UNKNOWN.items():
        value = payload.get(name)
        if value is not None and value not in same and (name != "parallel_tool_calls" or payload.get("tools")):
            raise errors.bad_request(f"{name}: got {errors.shown(value)}, want {want}", name)
    tools = path == CHAT and payload.get("tool_choice") != "none"
    return {key: value for key, value in payload.items() if key not in _UNKNOWN and (tools or key != "tools")}
