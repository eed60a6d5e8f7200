"""What clients may ask, and what of it goes on to a server."""

import json

from api_server import errors
from api_server.context import CHAT, COMPLETIONS, EMBEDDINGS, NATIVE_CHAT, NATIVE_EMBED, NATIVE_GENERATE, Payload
from api_server.settings import Route

INFERENCE = (CHAT, COMPLETIONS, EMBEDDINGS, NATIVE_CHAT, NATIVE_GENERATE, NATIVE_EMBED)
"""Posts that are forwarded. Ollama's pull, push, create, copy, delete and blobs are not among them."""
_SAMPLING = frozenset(
    {"seed", "stop", "num_predict", "top_k", "top_p", "min_p", "typical_p", "temperature"}
    | {"repeat_last_n", "repeat_penalty", "presence_penalty", "frequency_penalty"}
)
"""Options of one answer. The others belong to the loaded model: another num_ctx reloads it for everybody."""
_NATIVE_DROPPED = ("keep_alive", "shift", "truncate", "_debug_render_only")
"""keep_alive 0 unloads the model for everybody, and another shift reloads it."""
_OPENAI_DROPPED = ("options", "keep_alive", "_debug_render_only")


def is_native(path: str) -> bool:
    return path.startswith("/api/")


def parse(path: str, body: bytes) -> Payload:
    """Raises ApiError 400 on what no server could answer."""
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise errors.bad_request(f"body: got no JSON ({error}), want a JSON object; correct it") from None
    if not isinstance(payload, dict):
        raise errors.bad_request(f"body: got {type(payload).__name__}, want a JSON object; correct it")
    if not isinstance(payload.get("model"), str):
        raise errors.bad_request("model: got nothing, want a model id; see GET /v1/models")
    messages = payload.get("messages")
    if path == CHAT and (not isinstance(messages, list) or not messages):
        raise errors.bad_request("messages: got nothing, want a list of messages; add one")
    if path == NATIVE_CHAT and not isinstance(payload.setdefault("messages", []), list):
        raise errors.bad_request("messages: got no list, want a list of messages; correct it")
    for key, kind in (("options", dict), ("stream_options", dict), ("reasoning", dict), ("tools", list)):
        if payload.get(key) is not None and not isinstance(payload[key], kind):
            raise errors.bad_request(f"{key}: got {type(payload[key]).__name__}, want {kind.__name__}; correct it")
    return payload


def cleaned(path: str, payload: Payload, route: Route, model: str) -> Payload:
    """The payload as a server gets it: its own model name, nothing that would change the loaded model, and tokens counted."""
    name = {"model": route.model or model}
    if not is_native(path):
        kept = {key: value for key, value in payload.items() if key not in _OPENAI_DROPPED}
        if route.engine == "ollama" and (limit := kept.pop("max_completion_tokens", None)) is not None:
            kept["max_tokens"] = limit  # the newer name, which Ollama does not know
        if kept.get("stream") is True and path != EMBEDDINGS:
            kept["stream_options"] = (kept.get("stream_options") or {}) | {"include_usage": True}
        return kept | name
    kept = {key: value for key, value in payload.items() if key not in _NATIVE_DROPPED}
    if kept.get("options"):
        kept["options"] = {key: value for key, value in kept["options"].items() if key in _SAMPLING}
    return kept | {"truncate": False} | name


def stream_kind(path: str, payload: Payload) -> str:
    """How the answer will come: `sse`, `ndjson`, or empty for one document."""
    if path in (NATIVE_CHAT, NATIVE_GENERATE):
        return "" if payload.get("stream") is False else "ndjson"
    return "sse" if payload.get("stream") is True and path != EMBEDDINGS else ""


def drops_usage(payload: Payload) -> bool:
    return (payload.get("stream_options") or {}).get("include_usage") is not True


def affinity(payload: Payload) -> bytes:
    """The same for all requests of a conversation: its messages up to the first of the user."""
    messages = payload.get("messages")
    if not isinstance(messages, list):
        return str(payload.get("prompt"))[:1024].encode(errors="replace")
    users = (index for index, message in enumerate(messages) if isinstance(message, dict) and message.get("role") == "user")
    return json.dumps(messages[: next(users, 0) + 1], sort_keys=True).encode()
