"""Refuses requests that cannot fit a model's context, because Ollama would cut them without a word.

A token is at least one byte of the prompt, so most requests are known to fit by their size alone. For the others Ollama itself
counts: the same prompt goes to its own API first, with `truncate` off and one token to generate. Either it refuses, with
the number, or the number is in its answer, and the prompt is then in the server's cache for the request proper.

A request that names no limit for its answer gets what is left of the context; beyond it, Ollama would forget the beginning.
"""

import json
from typing import Any

import aiohttp

from api_server import errors
from api_server.settings import Route
from api_server.upstreams import Address, tagged

Payload = dict[str, Any]
CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
NATIVE_CHAT, NATIVE_GENERATE, NATIVE_EMBED = "/api/chat", "/api/generate", "/api/embed"
_TOOL_WORDS = 1024
"""Tokens that a template says about tools beside the tools themselves. The longest of the families that call tools (gpt-oss, Qwen, Llama)
needs under 500."""
_RETRY_S = 2
_THINK = {"none": False, "minimal": "low", "xhigh": "max", "ultra": "max"}
"""How Ollama's OpenAI layer reads reasoning_effort, where the word is not its own."""


class ContextGuard:
    """Counts prompts for Ollama servers. `counted` is called for each one that needed the server's word."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._template_tokens: dict[tuple[str, str], int] = {}

    async def fit(self, path: str, payload: Payload, route: Route, model: str, address: Address) -> tuple[Payload, bool]:
        """The payload with a limit for the answer that the context has room for, and whether the server had to count.

        Raises ApiError 400 with the numbers when prompt and answer do not fit.
        """
        name = route.model or model
        limit = route.context_length
        asked = _answer_limit(path, payload)
        wanted = limit // 2 if asked is None else asked
        counted = False
        used = None
        # A first look without the template's own words, which have to be asked for once.
        if (size := most_tokens(path, payload)) is not None and size + wanted <= limit:
            used = size + await self._template(path, name, address)
        if used is None or used + wanted > limit:
            used, limit = await self._count(path, payload, name, address, limit)
            counted = True
            if path in (EMBEDDINGS, NATIVE_EMBED):
                return payload, counted  # each input fits; the number is that of all together
        if used + (1 if asked is None else asked) > limit:
            raise errors.context_exceeded(model, used, asked, limit)
        return (payload if asked is not None else _with_limit(path, payload, max(1, limit - used - 1))), counted

    async def _template(self, path: str, name: str, address: Address) -> int:
        """Tokens of a prompt of one letter: what the model's template and its default system prompt add. Asked once a version."""
        if path in (EMBEDDINGS, NATIVE_EMBED):
            return 8  # begin, end and separator of the input
        version = str((address.store or {}).get(tagged(name), {}).get("digest", ""))
        if (name, version) not in self._template_tokens:
            message = {"messages": [{"role": "user", "content": "a"}]}
            self._template_tokens[name, version], _ = await self._count(NATIVE_CHAT, message, name, address, 0)
        return self._template_tokens[name, version]

    async def _count(self, path: str, payload: Payload, name: str, address: Address, limit: int) -> tuple[int, int]:
        """Tokens of the prompt, and of the context as the server has it."""
        url, body = counting_request(path, payload)
        async with self._session.post(address.url + url, json=body | {"model": name, "truncate": False}) as response:
            answer = await _json(response)
        if response.status == 200 and isinstance(answer.get("prompt_eval_count"), int):
            return answer["prompt_eval_count"], limit
        numbers = _exceeded(answer)
        if numbers is not None:
            return numbers
        reason = str(answer.get("error", "no count"))
        if response.status == 503:
            raise errors.too_busy(name, _RETRY_S)
        if response.status == 404:
            # The server's list of models was older than its store.
            raise errors.unavailable(name, _RETRY_S)
        if "exceeds the context length" in reason:
            raise errors.context_exceeded(name, None, None, limit)
        if 400 <= response.status < 500:
            raise errors.bad_request(f"{name}: got {reason} when its prompt was counted, want one that fits the model; correct it")
        raise errors.upstream_failed(name, f"{response.status} {reason}")


async def _json(response: aiohttp.ClientResponse) -> Payload:
    try:
        answer = json.loads(await response.read())
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _exceeded(answer: Payload) -> tuple[int, int] | None:
    """Ollama passes its engine's refusal on as JSON within JSON."""
    try:
        inner = json.loads(answer["error"])["error"]
        return int(inner["n_prompt_tokens"]), int(inner["n_ctx"])
    except (ValueError, KeyError, TypeError):
        return None


def _answer_limit(path: str, payload: Payload) -> int | None:
    """Tokens that the client allows for the answer; None when it names none. Ollama reads -1 and -2 as no limit."""
    if path in (EMBEDDINGS, NATIVE_EMBED):
        return 0
    value = (payload.get("options") or {}).get("num_predict") if path.startswith("/api/") else payload.get("max_tokens")
    return int(value) if isinstance(value, int | float) and value >= 1 else None


def _with_limit(path: str, payload: Payload, tokens: int) -> Payload:
    if path.startswith("/api/"):
        return payload | {"options": (payload.get("options") or {}) | {"num_predict": tokens}}
    return payload | {"max_tokens": tokens}


def most_tokens(path: str, payload: Payload) -> int | None:
    """More tokens than the prompt can have, by its bytes; None where bytes say nothing: an image is a fixed number of tokens."""
    if path in (NATIVE_EMBED, EMBEDDINGS):
        inputs = payload.get("input")
        return max((_size(each) for each in (inputs if isinstance(inputs, list) else [inputs])), default=0)
    if path in (COMPLETIONS, NATIVE_GENERATE):
        if payload.get("images") or payload.get("context"):
            return None
        return sum(_size(payload.get(key)) for key in ("prompt", "suffix", "system", "template"))
    if any(_has_media(message) for message in payload["messages"]):
        return None
    tools = payload.get("tools")
    # A template may print the tools with other spaces than they came with.
    return _size(payload["messages"]) + (2 * _size(tools) + _TOOL_WORDS if tools else 0)


def _size(value: Any) -> int:
    """UTF-8 bytes; of anything but text, as JSON, whose punctuation outweighs a template's marks."""
    if value is None:
        return 0
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return len(text.encode("utf-8", "surrogatepass"))


def _has_media(message: Any) -> bool:
    if not isinstance(message, dict):
        return False
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    return bool(message.get("images")) or any(not isinstance(part, dict) or part.get("type") != "text" for part in parts)


def counting_request(path: str, payload: Payload) -> tuple[str, Payload]:
    """Path and body, in Ollama's own API, of a request with the same prompt that generates one token.

    Raises ApiError 400 on messages that Ollama would refuse too.
    """
    once = {"stream": False, "options": {"num_predict": 1}}
    match path:
        case "/v1/embeddings" | "/api/embed":
            return NATIVE_EMBED, {"input": payload.get("input")}
        case "/v1/completions" | "/api/generate":
            keys = ("prompt", "suffix", "system", "template", "images", "context", "raw", "think")
            return NATIVE_GENERATE, {key: payload[key] for key in keys if key in payload} | once
        case "/api/chat":
            return NATIVE_CHAT, {key: payload[key] for key in ("messages", "tools", "think") if key in payload} | once
        case _:
            body: Payload = {"messages": _native_messages(payload["messages"])} | once
            if payload.get("tools"):
                body["tools"] = payload["tools"]
            effort = (payload.get("reasoning") or {}).get("effort") or payload.get("reasoning_effort")
            if effort:
                body["think"] = _THINK.get(effort, effort)
            return NATIVE_CHAT, body


def _native_messages(messages: list[Any]) -> list[Payload]:
    """OpenAI's messages in Ollama's form, part by part as Ollama's own OpenAI layer does it."""
    native: list[Payload] = []
    names: dict[str, str] = {}
    for message in messages:
        if not isinstance(message, dict):
            raise errors.bad_request("messages: got an entry that is no object, want role and content; correct it")
        try:
            calls = [_native_call(call) for call in message.get("tool_calls") or []]
        except (KeyError, TypeError, ValueError):
            raise errors.bad_request("messages: got a tool call without a name and JSON arguments, want both; correct it") from None
        names |= {str(call.get("id")): call["function"]["name"] for call in calls}
        content = message.get("content")
        parts = [_native_part(part) for part in content] if isinstance(content, list) else [{"content": content or ""}]
        own: Payload = {"thinking": message.get("reasoning"), "tool_calls": calls, "tool_call_id": message.get("tool_call_id")}
        own["tool_name"] = message.get("name") or names.get(str(message.get("tool_call_id")))
        native += [{"role": message.get("role"), **part} for part in parts]
        if native:
            native[-1] |= {key: value for key, value in own.items() if value}
    return native


def _native_call(call: Payload) -> Payload:
    function = call["function"]
    return {"id": call.get("id"), "function": {"name": function["name"], "arguments": json.loads(function["arguments"])}}


def _native_part(part: Any) -> Payload:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        return {"content": part.get("text", "")}
    source = (part.get("image_url") or part.get("input_audio")) if kind in ("image_url", "input_audio") else None
    data = source if isinstance(source, str) else (source or {}).get("url") or (source or {}).get("data")
    if not isinstance(data, str):
        raise errors.bad_request(f"messages: got content of type {kind!r}, want text, image_url or input_audio; correct it")
    return {"images": [data.rpartition("base64,")[2]]}
