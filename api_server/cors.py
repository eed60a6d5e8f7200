"""Lets the pages of named origins use the API from a browser. Off unless the operator names one: a key in a page is a key in many hands."""

from collections.abc import Set
from typing import Any

from aiohttp import web

_METHODS = "GET, HEAD, POST"
_EXPOSED = "x-request-id, retry-after, x-cache"
_AGE_S = "600"
"""How long a browser need not ask again."""


def allow(app: web.Application, origins: Set[str]) -> None:
    """Answer preflights of these origins, which carry no key by the standard, and mark every answer to them."""
    if not origins:
        return

    @web.middleware
    async def preflight(request: web.Request, handler: Any) -> web.StreamResponse:
        asked = "Access-Control-Request-Method" in request.headers
        if request.method != "OPTIONS" or not asked or request.headers.get("Origin") not in origins:
            return await handler(request)
        headers = {"Access-Control-Allow-Methods": _METHODS, "Access-Control-Max-Age": _AGE_S}
        wanted = request.headers.get("Access-Control-Request-Headers", "")
        return web.Response(status=204, headers=headers | ({"Access-Control-Allow-Headers": wanted} if wanted.isascii() else {}))

    async def mark(request: web.Request, response: web.StreamResponse) -> None:
        origin = request.headers.get("Origin", "")
        response.headers["Vary"] = ", ".join(filter(None, (response.headers.get("Vary"), "Origin")))
        if origin in origins:
            response.headers.update({"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": _EXPOSED})

    app.middlewares.insert(0, preflight)
    app.on_response_prepare.append(mark)
