"""One error shape, OpenAI's, for everything that this server says itself."""

from collections.abc import Mapping

from aiohttp import web


class ApiError(Exception):
    """An answer other than success. `kind` is OpenAI's error type."""

    def __init__(self, status: int, kind: str, message: str, code: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "code": code, "param": None}}
        self.headers = dict(headers or {})

    def response(self) -> web.Response:
        return web.json_response(self.body, status=self.status, headers=self.headers)


def unauthorized() -> ApiError:
    message = "Authorization: got no valid key, want Bearer <key>; ask the operator of this fleet for one"
    return ApiError(401, "authentication_error", message, "invalid_api_key", {"WWW-Authenticate": "Bearer"})


def bad_request(message: str) -> ApiError:
    return ApiError(400, "invalid_request_error", message)


def unknown_model(model: object, known: list[str]) -> ApiError:
    message = f"model: got {model!r}, want one of {', '.join(known)}; see GET /v1/models"
    return ApiError(404, "invalid_request_error", message, "model_not_found")


def too_busy(model: str, retry_s: int) -> ApiError:
    message = f"{model}: got more requests than its servers take at once, want fewer; try again after {retry_s} s"
    return ApiError(429, "rate_limit_error", message, "server_busy", {"Retry-After": str(retry_s)})


def unavailable(model: str, retry_s: int) -> ApiError:
    message = f"{model}: got no server that answers, want one; try again after {retry_s} s"
    return ApiError(503, "server_error", message, "no_upstream", {"Retry-After": str(retry_s)})


def upstream_failed(model: str, reason: str) -> ApiError:
    return ApiError(502, "server_error", f"{model}: got {reason} from its server, want an answer; try again", "upstream_error")
