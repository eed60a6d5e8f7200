"""Refuses requests that cannot fit a model's context, because Ollama would cut them without a word.

A token is at least one byte of the prompt, so most requests are known to fit by their size alone. For the others Ollama itself
counts: the same prompt goes to its own API first, with `truncate` off and one token to generate. Either it refuses, with
the number, or the number is in its answer, and the prompt is then in the server's cache for the request proper.

Only a prompt can be too long. A limit for the answer that is beyond what is left of the context is cut to what is left, and a request that
names no limit gets what is left; beyond it, Ollama would forget the beginning.
"""

import json

import aiohttp

from api_server import errors
from api_server.address import Address, tagged
from api_server.paths import EMBEDDINGS, ENDPOINTS, NATIVE_CHAT, NATIVE_EMBED, Payload, encode, is_native
from api_server.reading import body as read
from api_server.requests import Asked
from api_server.translation import counting_request

_RETRY_S = 2


class ContextGuard:
    """Counts prompts for Ollama servers."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._template_tokens: dict[tuple[str, str], int] = {}

    async def fit(self, asked: Asked, payload: Payload, address: Address) -> tuple[Payload, bool]:
        """The payload with a limit for the answer that the context has room for, and whether the server had to count.

        `payload` is the body of `asked` or a part of it.

        Raises ApiError 400 with the numbers when the prompt does not fit.
        """
        path, route, model = asked.path, asked.route, asked.model
        name = route.model or model
        limit = route.context_length
        embeds = path in (EMBEDDINGS, NATIVE_EMBED)
        allowed = None if embeds else _answer_limit(path, payload)
        half = limit // 2
        wanted = 0 if embeds else half if allowed is None else min(allowed, half)
        counted = False
        used = None
        # A first look without the template's own words, which have to be asked for once.
        if asked.most_tokens is not None and asked.most_tokens + wanted <= limit:
            used = asked.most_tokens + await self._template(path, name, address)
        if used is None or used + wanted > limit:
            used, limit = await self._count(path, payload, name, address, limit)
            counted = True
        if embeds:
            return payload, counted  # each input fits; the number is that of all together
        if used >= limit:
            raise errors.context_exceeded(model, used, limit)
        if allowed is not None and used + allowed <= limit:
            return payload, counted
        return _with_limit(path, payload, max(1, limit - used - 1)), counted

    async def tokens(self, asked: Asked, payload: Payload, address: Address) -> int:
        """Of the prompt, also where it does not fit. Raises ApiError."""
        used, _ = await self._count(asked.path, payload, asked.route.model or asked.model, address, asked.route.context_length)
        return used

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
        data, headers = encode(body | {"model": name, "truncate": False}), {"content-type": "application/json"}
        async with self._session.post(address.url + url, data=data, headers=headers, allow_redirects=False) as response:
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
            raise errors.context_exceeded(name, None, limit)
        if 400 <= response.status < 500:
            raise errors.bad_request(f"{name}: got {reason} when its prompt was counted, want one that fits the model; correct it")
        raise errors.upstream_failed(name, f"{response.status} {reason}")


async def _json(response: aiohttp.ClientResponse) -> Payload:
    try:
        answer = json.loads(await read(response))
    except (ValueError, RecursionError):
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
    """Tokens that the client allows for the answer; None when it names none. Ollama reads -1 and -2 as no limit, and 0 too, which is what
    nobody means by it. Raises ApiError 400 on that."""
    name = ENDPOINTS[path].limit or "num_predict"
    value = (payload.get("options") or {} if is_native(path) else payload).get(name)
    if not isinstance(value, int | float) or value <= -1:
        return None
    if value < 1:
        raise errors.bad_request(f"{name}: got {value}, want 1 or more, or -1 for no limit; correct it", name)
    return int(value)


def _with_limit(path: str, payload: Payload, tokens: int) -> Payload:
    if is_native(path):
        return payload | {"options": (payload.get("options") or {}) | {"num_predict": tokens}}
    return payload | {ENDPOINTS[path].limit: tokens}
