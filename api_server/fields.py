"""The fields of a request that go on, by exact name, for each endpoint and kind of server. All others are dropped, and counted by name.

Ollama reads field names without regard to case, and takes U+017F for s: with a list of what is forbidden, `Keep_Alive` would pass, and
unload the model for everybody. The names and their types are those of models.py.
"""

from api_server import errors
from api_server.models import MODELS, Engine
from api_server.paths import CHAT, Payload

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


def label(name: str) -> str:
    """The metric's label for a dropped field."""
    return name if name in COUNTED else "other"


def kept(path: str, payload: Payload, engine: Engine) -> tuple[Payload, list[str]]:
    """The fields that go on, and the names of those that do not.

    Raises ApiError 400 on one that changes the answer's meaning and cannot be honoured.
    """
    allowed = ALLOWED[path, engine]
    if engine == "ollama" and path == CHAT:
        payload = _choice(payload)
    rest = {key: value for key, value in payload.items() if key in allowed}
    dropped = [key for key in payload if key not in allowed]
    for key, inner in (("options", OPTIONS), ("reasoning", {"effort"}), ("stream_options", {"include_usage"})):
        if isinstance(rest.get(key), dict):
            dropped += [name for name in rest[key] if name not in inner]
            rest[key] = {name: value for name, value in rest[key].items() if name in inner}
    return rest, dropped


def _choice(payload: Payload) -> Payload:
    """Ollama knows neither `tool_choice` nor `n`. `none` means no tools, `auto` is what it does anyway."""
    if payload.get("n") not in (None, 1):
        raise errors.bad_request(f"n: got {payload['n']!r}, want 1; this model gives one answer a request")
    choice = payload.get("tool_choice")
    if choice not in (None, "auto", "none"):
        raise errors.bad_request(f"tool_choice: got {choice!r}, want auto or none; Ollama cannot force a call")
    known = {key: value for key, value in payload.items() if key not in ("n", "tool_choice", "tools")}
    return known if choice == "none" or "tools" not in payload else known | {"tools": payload["tools"]}
