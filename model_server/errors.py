"""What this server says itself, and what the engine says, in the error shape of the API that was asked."""

import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from model_server.endpoints import Api, api_of

_ANTHROPIC = {400: "invalid_request_error", 404: "not_found_error", 413: "request_too_large", 503: "overloaded_error"}
"""Types by status; others are `api_error`. Source: Anthropic's API reference, errors."""


class ApiError(Exception):
    """An answer in OpenAI's error shape, or in Anthropic's."""

    def __init__(self, status: int, kind: str, message: str, code: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers
        self._error = {"message": message, "type": kind, "code": code, "param": None}

    def body(self, api: Api) -> dict[str, Any]:
        if api == "openai":
            return {"error": self._error}
        kind = _ANTHROPIC.get(self.status, "api_error" if self.status >= 500 else "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": self._error["message"]}}

    def response(self, api: Api) -> web.Response:
        return web.json_response(self.body(api), status=self.status, headers=self.headers)


def too_long(got: str, limit: Any) -> ApiError:
    """A prompt that does not fit, in the sentences that agents know: docs/gateway.md has them with their sources. `got`: how long it is."""
    message = (
        f"prompt is too long: {got} > {limit} maximum. This model's maximum context length is {limit} tokens. "
        "Please reduce the length of the messages."
    )
    return ApiError(400, "invalid_request_error", message, "context_length_exceeded")


def unsupported() -> ApiError:
    message = "model: got one that was not made for this endpoint, want one that was; ask another model"
    return ApiError(400, "invalid_request_error", message, "unsupported_endpoint")


def refusal(status: int, body: bytes) -> ApiError:
    """The engine's error in our form. A prompt beyond the context is refused with both numbers, and never cut."""
    try:
        error: dict[str, Any] = json.loads(body)["error"]
        if not isinstance(error, dict):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        return ApiError(502, "server_error", f"engine: got status {status}, want an answer; try again", "engine_failed")
    if error.get("type") == "exceed_context_size_error":
        return too_long(f"{error.get('n_prompt_tokens')} tokens", error.get("n_ctx"))
    if status == 501:
        # The engine's own words are flags of its command line.
        return unsupported()
    kind = "invalid_request_error" if status < 500 else "server_error"
    code = kind if error.get("type") == "server_error" else str(error.get("type") or "") or None
    return ApiError(status, kind, str(error.get("message", "engine error")), code)


async def shape(request: web.Request, response: web.StreamResponse) -> None:
    """What aiohttp says before a request reaches us, as of an Expect that it does not know, in the shape of every other error."""
    if isinstance(response, web.HTTPException):
        error = ApiError(response.status, "invalid_request_error", f"request: got {response.reason}, want HTTP/1.1; correct it")
        body = json.dumps(error.body(api_of(request.path))).encode()
        response.body = body
        response.content_type = "application/json"
        response.headers["Content-Length"] = str(len(body))
