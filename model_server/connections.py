"""What is said to what is no HTTP: aiohttp answers it with a page of its own."""

from aiohttp import web

from model_server.errors import ApiError


class Connection(web.RequestHandler):
    """A connection whose every answer has the shape of an API's."""

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        said = str(message or "").partition("\n")[0][:200]
        kind = "invalid_request_error" if status < 500 else "server_error"
        response = ApiError(status, kind, f"request: got no HTTP ({said}), want HTTP/1.1; correct it").response("openai")
        response.force_close()
        return response
