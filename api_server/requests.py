"""What clients may ask, and what of it goes on to a server."""

import functools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from api_server import errors, fields, history, messages, models, responses, schemas, size, tools
from api_server.paths import CHAT, COUNT_TOKENS, ENDPOINTS, MESSAGES, NATIVE_CHAT, RESPONSES, Payload, is_native
from api_server.routing import Routing
from api_server.sessions import Turn, beginning
from api_server.settings import Route

_DEEPEST = 100
"""Levels of nesting. The schemas of real tools have under 20."""


@dataclass
class Asked:
    """A request, understood."""

    path: str
    model: str
    """The id that clients use."""
    route: Route
    body: Payload
    """What a server gets, before it is asked what its model can do."""
    dropped: list[str]
    """Names of fields that do not go on."""
    stream: str
    """How the answer will come: by its name in streams.py, or empty for one document."""
    drops_usage: bool
    """The client did not ask for the usage chunk of a stream."""
    turn: Turn
    most_tokens: int | None
    """More tokens than the prompt can have, by its bytes; None where bytes say nothing."""
    media: bool
    """Whether an image or a sound is part of the prompt."""
    server_s: float = 0.0
    """Seconds that servers had it in work."""

    @property
    def prompt(self) -> str:
        """The field that has the prompt."""
        return ENDPOINTS[self.path].prompt or "messages"

    @property
    def is_counted_here(self) -> bool:
        """Whether the number of tokens is all that is asked, of a server that has no such endpoint."""
        return self.path == COUNT_TOKENS and self.route.engine == "ollama"

    @property
    def concerns_abilities(self) -> bool:
        """Whether the answer depends on what the model can do."""
        return bool(self.media or not fields.THINKING.isdisjoint(self.body) or self.body.get("tools"))


def understood(path: str, body: bytes, routing: Routing, turn: Callable[[str, Payload, Payload, int], Turn]) -> Asked:
    """`turn`: Sessions.turn for the client. Raises ApiError on what no server could answer."""
    payload = parse(path, body)
    model, route = routing.find(payload["model"], functools.partial(beginning, payload), native=is_native(path))
    kept, dropped = cleaned(path, payload, route, model)
    most, media = size.most_tokens(path, kept), size.has_media(path, kept)
    length = size.without_media(len(body), kept) if media else len(body)
    part = turn(model, payload, kept, length) if ENDPOINTS[path].stream else Turn(size=len(body))
    return Asked(path, model, route, kept, dropped, _stream_kind(path, payload), _drops_usage(payload), part, most, media)


def document(body: bytes) -> Payload:
    """A JSON object without a doubled key or a number that is none. Raises ApiError 400."""
    try:
        bare = body.removeprefix(b"\xef\xbb\xbf")
        text = bare.decode(json.detect_encoding(bare))
        payload = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise errors.bad_request(f"body: got no JSON ({error}), want a JSON object; correct it") from None
    if not isinstance(payload, dict):
        raise errors.bad_request(f"body: got {type(payload).__name__}, want a JSON object; correct it")
    # Few bytes make few levels. To look at the values costs less than to count brackets in the bytes.
    if len(body) > 2 * _DEEPEST and _is_deep(payload):
        raise errors.bad_request(f"body: got more than {_DEEPEST} levels, want fewer; correct it")
    # Half of a character, as of a text that was cut in the middle of an emoji, is no Unicode.
    return _mended(payload) if "\\u" in text and ("\\ud" in text or "\\uD" in text) else payload


def _is_deep(payload: Payload) -> bool:
    level: list[Any] = [payload]
    for _ in range(_DEEPEST):
        inner = (each for outer in level for each in (outer.values() if type(outer) is dict else outer))
        level = [each for each in inner if type(each) is dict or type(each) is list]
        if not level:
            return False
    return True


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_mended(each) for each in value]
    return {_mended(key): _mended(each) for key, each in value.items()} if isinstance(value, dict) else value


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


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_number, parse_constant=_number)
"""What json.loads would make again for each document."""


def parse(path: str, body: bytes) -> Payload:
    """Raises ApiError 400 on what no server could answer."""
    payload = document(body)
    if not isinstance(payload.get("model"), str):
        raise errors.bad_request("model: got nothing, want a model id; see GET /v1/models", "model")
    prompt = ENDPOINTS[path].prompt
    if prompt and payload.get(prompt) in (None, [], ""):
        want = "text or a list of items; add it" if prompt == "input" else f"a list of {prompt}; add one"
        raise errors.bad_request(f"{prompt}: got nothing, want {want}", prompt)
    return payload


def cleaned(path: str, payload: Payload, route: Route, model: str) -> tuple[Payload, list[str]]:
    """The payload as a server gets it: its own model name, nothing that would change the loaded model, and tokens counted.
    Beside it the names of the fields that were dropped. Raises ApiError 400 that names the field that cannot go on."""
    native, engine = is_native(path), route.engine
    if (path, engine) not in models.MODELS:
        raise errors.no_endpoint(model, path, models.endpoints(engine))
    chats = ENDPOINTS[path].stream == "sse"
    if engine == "ollama" and chats and payload.get("max_completion_tokens") is not None:
        # The newer name, which Ollama does not know.
        newer = payload["max_completion_tokens"]
        payload = {key: value for key, value in payload.items() if key != "max_completion_tokens"} | {"max_tokens": newer}
    kept, dropped = fields.kept(path, payload, engine)
    models.check(path, engine, kept)
    if path in (CHAT, NATIVE_CHAT):
        form: history.Form = "thinking" if native else "reasoning" if engine == "ollama" else "reasoning_content"
        kept["messages"] = history.normalised(kept.get("messages", []), form)
        if kept.get("tools"):
            kept["tools"] = tools.functions(kept["tools"])
        kept |= tools.chosen(kept)
    elif path in (MESSAGES, COUNT_TOKENS):
        kept = messages.normalised(kept, messages.schema_of(payload))
    elif path == RESPONSES:
        kept, lost = responses.normalised(kept, engine)
        dropped += lost
    schemas.check(kept)
    if kept.get("stream") is True and chats:
        kept["stream_options"] = {"include_usage": True}
    if native:
        kept["truncate"] = False
    return kept | {"model": route.model or model}, dropped


def _stream_kind(path: str, payload: Payload) -> str:
    """How the answer will come. Ollama's own API streams unless it is told not to."""
    stream = payload.get("stream")
    return ENDPOINTS[path].stream if stream is True or (is_native(path) and stream is not False) else ""


def _drops_usage(payload: Payload) -> bool:
    """Whether the client did not ask for the usage chunk of a stream."""
    options = payload.get("stream_options")
    return not isinstance(options, dict) or options.get("include_usage") is not True
