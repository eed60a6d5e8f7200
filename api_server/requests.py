"""What clients may ask, and what of it goes on to a server."""

import json
import math
from typing import Any

from api_server import errors, fields, history
from api_server.paths import CHAT, EMBEDDINGS, NATIVE_CHAT, NATIVE_EMBED, NATIVE_GENERATE, Payload, is_native
from api_server.settings import Route

_TYPES: tuple[tuple[str, type], ...] = (
    ("options", dict),
    ("stream_options", dict),
    ("reasoning", dict),
    ("tools", list),
    ("reasoning_effort", str),
)
_LIMITS = ("max_tokens", "max_completion_tokens")


def document(body: bytes) -> Payload:
    """A JSON object without a doubled key or a number that is none. Raises ApiError 400."""
    try:
        payload = json.loads(body, object_pairs_hook=_object, parse_float=_number, parse_constant=_number)
    except (ValueError, RecursionError) as error:
        raise errors.bad_request(f"body: got no JSON ({error}), want a JSON object; correct it") from None
    if not isinstance(payload, dict):
        raise errors.bad_request(f"body: got {type(payload).__name__}, want a JSON object; correct it")
    return payload


def _object(pairs: list[tuple[str, Any]]) -> Payload:
    """Two readers may take either of two equal keys: one that was checked, and the other one."""
    entry = dict(pairs)
    if len(entry) != len(pairs):
        seen: set[str] = set()
        doubled = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"the key {doubled[:64]!r} twice in one object")
    return entry


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:64]}")
    return value


def parse(path: str, body: bytes) -> Payload:
    """Raises ApiError 400 on what no server could answer."""
    payload = document(body)
    if not isinstance(payload.get("model"), str):
        raise errors.bad_request("model: got nothing, want a model id; see GET /v1/models")
    messages = payload.get("messages")
    if path == CHAT and (not isinstance(messages, list) or not messages):
        raise errors.bad_request("messages: got nothing, want a list of messages; add one")
    if path == NATIVE_CHAT and not isinstance(payload.setdefault("messages", []), list):
        raise errors.bad_request("messages: got no list, want a list of messages; correct it")
    for key, kind in _TYPES:
        if payload.get(key) is not None and not isinstance(payload[key], kind):
            raise errors.bad_request(f"{key}: got {type(payload[key]).__name__}, want {kind.__name__}; correct it")
    for key in _LIMITS:
        if payload.get(key) is not None and (isinstance(payload[key], bool) or not isinstance(payload[key], int | float)):
            raise errors.bad_request(f"{key}: got {payload[key]!r}, want a number of tokens; correct it")
    return payload


def cleaned(path: str, payload: Payload, route: Route, model: str) -> tuple[Payload, list[str]]:
    """The payload as a server gets it: its own model name, nothing that would change the loaded model, and tokens counted.
    Beside it the names of the fields that were dropped. Raises ApiError 400 that names the field that cannot go on."""
    native = is_native(path)
    if route.engine == "ollama" and not native and payload.get("max_completion_tokens") is not None:
        # The newer name, which Ollama does not know.
        newer = payload["max_completion_tokens"]
        payload = {key: value for key, value in payload.items() if key != "max_completion_tokens"} | {"max_tokens": newer}
    kept, dropped = fields.kept(path, payload, route.engine)
    if "messages" in kept:
        form: history.Form = "thinking" if native else "reasoning" if route.engine == "ollama" else "reasoning_content"
        kept["messages"] = history.normalised(kept["messages"], form)
    if kept.get("stream") is True and not native and path != EMBEDDINGS:
        kept["stream_options"] = {"include_usage": True}
    if native:
        kept["truncate"] = False
    return kept | {"model": route.model or model}, dropped


def stream_kind(path: str, payload: Payload) -> str:
    """How the answer will come: `sse`, `ndjson`, or empty for one document."""
    if path in (NATIVE_CHAT, NATIVE_GENERATE):
        return "" if payload.get("stream") is False else "ndjson"
    return "sse" if payload.get("stream") is True and path not in (EMBEDDINGS, NATIVE_EMBED) else ""


def drops_usage(payload: Payload) -> bool:
    """Whether the client did not ask for the usage chunk of a stream."""
    return (payload.get("stream_options") or {}).get("include_usage") is not True


def affinity(payload: Payload) -> bytes:
    """The same for all requests of a conversation: its messages up to the first of the user."""
    messages = payload.get("messages")
    if not isinstance(messages, list):
        return str(payload.get("prompt"))[:1024].encode(errors="replace")
    users = (index for index, message in enumerate(messages) if isinstance(message, dict) and message.get("role") == "user")
    return json.dumps(messages[: next(users, 0) + 1], sort_keys=True).encode()
