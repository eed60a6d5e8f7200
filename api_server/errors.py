"""What this server says itself, in the shape of the API that was asked: OpenAI's object, Anthropic's, or Ollama's line of text."""

import json
import re
import reprlib
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from api_server.paths import Api

_ANTHROPIC = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
"""Types by status; the others are `invalid_request_error` or, from 500 on, `api_error`. Source: Anthropic's API reference, errors."""
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100


def shown(value: object) -> str:
    """A value of a client's, short enough for a message."""
    return _SHORT.repr(value)


class ApiError(Exception):
    """An answer other than success. `kind` is OpenAI's error type."""

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "code": code, "param": param}}
        self.headers = dict(headers or {})

    def shaped(self, api: Api, request_id: str | None = None) -> dict[str, Any]:
        """The document that says it in this API."""
        if api == "anthropic":
            kind = _ANTHROPIC.get(self.status, "api_error" if self.status >= 500 else "invalid_request_error")
            return {"type": "error", "error": {"type": kind, "message": str(self)}, "request_id": request_id}
        return {"error": str(self)} if api == "ollama" else self.body

    def response(self, api: Api = "openai") -> web.Response:
        request_id = self.headers.get("x-request-id")
        # Anthropic's own name for it, which its libraries show.
        named = {"request-id": request_id} if api == "anthropic" and request_id else {}
        return web.json_response(self.shaped(api, request_id), status=self.status, headers=self.headers | named)


def unauthorized(got: str = "no valid key") -> ApiError:
    message = f"Authorization: got {got}, want Bearer <key>; ask the operator of this fleet for one"
    return ApiError(401, "authentication_error", message, "invalid_api_key", {"WWW-Authenticate": "Bearer"})


def bad_request(message: str, param: str | None = None) -> ApiError:
    return ApiError(400, "invalid_request_error", message, param=param)


def too_large(got: str) -> ApiError:
    return ApiError(413, "invalid_request_error", f"body: got {got}; send less", "request_too_large")


def too_slow() -> ApiError:
    message = "body: got no end of it in time, want the whole body as its headers say; send it faster"
    return ApiError(408, "invalid_request_error", message, "request_timeout")


def no_http(status: int, said: str) -> ApiError:
    return ApiError(status, "invalid_request_error", f"request: got no HTTP ({said[:200]}), want HTTP/1.1; correct it")


def head_too_slow(limit_s: float) -> ApiError:
    message = f"request: got no end of its head within {limit_s:g} s, want it sooner; send it in one piece"
    return ApiError(408, "invalid_request_error", message, "request_timeout")


def head_too_large(most: int) -> ApiError:
    message = f"request: got a head of more than {most} bytes, want a shorter one; send fewer or shorter headers"
    return ApiError(431, "invalid_request_error", message, "request_too_large")


def no_connection(retry_s: int) -> ApiError:
    message = f"this server: got more connections than it has room for, want fewer; try again after {retry_s} s"
    return ApiError(503, "server_error", message, "server_busy", {"Retry-After": str(retry_s)})


def too_many_of_a_key(most: int, of: str, retry_s: int) -> ApiError:
    message = f"Authorization: got more than {most} {of} with this key, want fewer; try again after {retry_s} s"
    return ApiError(429, "rate_limit_error", message, "rate_limit_exceeded", {"Retry-After": str(retry_s)})


def no_memory(retry_s: int) -> ApiError:
    message = f"this server: got more bytes of requests than it has memory for at once, want fewer; try again after {retry_s} s"
    return ApiError(429, "rate_limit_error", message, "server_busy", {"Retry-After": str(retry_s)})


def unknown_model(model: object, known: list[str]) -> ApiError:
    message = f"model: got {shown(model)}, want one of {', '.join(known)}; see GET /v1/models"
    return ApiError(404, "invalid_request_error", message, "model_not_found")


def too_busy(model: str, retry_s: int) -> ApiError:
    message = f"{model}: got more requests than its servers take at once, want fewer; try again after {retry_s} s"
    return ApiError(429, "rate_limit_error", message, "server_busy", {"Retry-After": str(retry_s)})


def unavailable(model: str, retry_s: int) -> ApiError:
    message = f"{model}: got no server that answers, want one; try again after {retry_s} s"
    return ApiError(503, "server_error", message, "no_upstream", {"Retry-After": str(retry_s)})


def upstream_failed(model: str, reason: str) -> ApiError:
    return ApiError(502, "server_error", f"{model}: got {reason} from its server, want an answer; try again", "upstream_error")


def context_exceeded(model: str, prompt: int | None, limit: int) -> ApiError:
    """`prompt`: None when its server only said that it is too long. Agents find this refusal by parts of its sentences, and shorten the
    conversation by themselves; which part is whose, with sources, is a table in docs/gateway.md. model_server/app.py says the same."""
    got = f"more than {limit}" if prompt is None else f"{prompt}"
    message = (
        f"{model}: prompt is too long: {got} tokens > {limit} maximum. This model's maximum context length is {limit} tokens. "
        "Please reduce the length of the messages."
    )
    return ApiError(400, "invalid_request_error", message, "context_length_exceeded")


def no_tools(model: str) -> ApiError:
    message = f"tools: got tools for {model}, want none; its chat template knows no tools; choose a model that has them, see GET /v1/models"
    return ApiError(400, "invalid_request_error", message, "model_not_supported", param="tools")


def no_media(model: str, field: str) -> ApiError:
    """`field`: where the conversation is."""
    message = f"{field}: got an image or a sound for {model}, want text; the model reads text alone; choose another model"
    return ApiError(400, "invalid_request_error", message, "model_not_supported", param=field)


def internal() -> ApiError:
    message = "this server: got a request that it failed on, want an answer; report it with the request id"
    return ApiError(500, "server_error", message, "internal_error")


def not_native(model: str) -> ApiError:
    message = f"{model}: got Ollama's own API, want POST /v1/chat/completions for this model; no Ollama serves it"
    return ApiError(400, "invalid_request_error", message, "model_not_supported")


def no_endpoint(model: str, path: str, have: list[str]) -> ApiError:
    """`have`: the endpoints of the model's kind of server."""
    message = f"model: got {shown(model)} at {path}, want a model whose server has it; this one has {', '.join(have)}; see GET /v1/models"
    return ApiError(400, "invalid_request_error", message, "model_not_supported", param="model")


_CUT_CALL = re.compile(r"returned invalid tool call arguments .*unexpected end of JSON input")
"""Of Ollama, with 500, when an answer reached its limit within a call. Source: ollama v0.32.15, llm/llama_server.go."""


def upstream_said(status: int, body: bytes, retry_after: str | None) -> ApiError:
    """A server's refusal: its own words where it has the shape of an API, and a sentence of ours where it has none."""
    kind = "invalid_request_error" if 400 <= status < 500 else "server_error"
    headers = {"Retry-After": retry_after} if retry_after is not None and retry_after.isdecimal() else {}
    try:
        said: Any = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        said = None
    message, code, param = said, None, None
    if isinstance(said, dict):
        message, code, param = said.get("message"), said.get("code"), said.get("param")
        kind = said["type"] if isinstance(said.get("type"), str) else kind
    message = _inner(message)
    if isinstance(message, str) and _CUT_CALL.search(message):
        want = "want one that has room for it; raise the limit, or shorten the conversation"
        return bad_request(f"limit of the answer: got one that ended within a call of a tool, {want}")
    if 400 <= status < 600 and isinstance(message, str) and message:
        return ApiError(status, kind, message, code if isinstance(code, str) else None, headers, param if isinstance(param, str) else None)
    text = " ".join(body.decode(errors="replace").split())[:200] or "no word"
    message = f"the model's server: got status {status} with {text!r}, want an answer; correct the request or try again"
    return ApiError(status if 400 <= status < 600 else 502, kind, message, "upstream_error", headers)


def _inner(said: Any) -> Any:
    """Ollama passes its engine's refusal on as JSON within JSON."""
    try:
        return json.loads(said)["error"]["message"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return said


def held_too_long(model: str, held_s: float, retry_s: int) -> ApiError:
    message = f"{model}: got no server within {held_s:g} s, want one; try again after {retry_s} s"
    return ApiError(503, "server_error", message, "no_upstream", {"Retry-After": str(retry_s)})
