"""The page for people: files that anybody may read, in a browser that lets them do nothing but ask this gateway.

No file knows a key or a name. The page asks /fleet for what it shows, with the key that its reader types in.
"""

from pathlib import Path

from aiohttp import web

_HERE = Path(__file__).parent
_KINDS = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".md": "text/markdown", ".svg": "image/svg+xml"}
_FILES = {path.name: (path.read_text(encoding="utf-8"), _KINDS[path.suffix]) for path in _HERE.iterdir() if path.suffix in _KINDS}
_INDEX = "index.html"
PATHS = ("/", *(f"/page/{name}" for name in sorted(_FILES) if name != _INDEX))
"""Without a key."""
UNKEPT = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
"""Headers of what nobody keeps, takes for another type, or is told the address of."""
_POLICY = (
    *("default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self'", "connect-src 'self'"),
    *("base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"),
    # Text that a script would make into elements is refused by the browser, wherever it came from.
    *("require-trusted-types-for 'script'", "trusted-types 'none'"),
)
_HEADERS = UNKEPT | {
    "Content-Security-Policy": "; ".join(_POLICY),
    "Cross-Origin-Resource-Policy": "same-origin",
}


def add_to(app: web.Application) -> None:
    app.router.add_get("/", _root)
    app.router.add_get("/page/{name}", _file)


async def _root(request: web.Request) -> web.Response:
    """The page to a browser. To Ollama's CLI, which asks here first, and to health checkers, that the gateway runs."""
    if "text/html" not in request.headers.get("Accept", ""):
        return web.Response(text="modelfleet is running", headers={"Vary": "Accept"})
    response = _shown(_INDEX)
    response.headers["Vary"] = "Accept"
    return response


async def _file(request: web.Request) -> web.Response:
    name = request.match_info["name"]
    if request.path not in PATHS:
        raise web.HTTPNotFound
    return _shown(name)


def _shown(name: str) -> web.Response:
    text, kind = _FILES[name]
    return web.Response(text=text, content_type=kind, headers=_HEADERS)
