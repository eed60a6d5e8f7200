"""The OpenAPI document, from the typed models of the endpoints."""

import functools
from collections.abc import Mapping
from typing import Any

import msgspec
from aiohttp import web

from api_server.fleet import Fleet
from api_server.limits import ACCOUNT
from api_server.models import MODELS, Engine
from api_server.paths import ENDPOINTS, Endpoint, api_of
from api_server.routing import Routing
from api_server.settings import Route

_TEXT = {"type": "string"}
_OBJECT = {"type": "object"}
_OWN = {"type": ["string", "null"]}
_OPENAI_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code", "param"],
            "properties": {"message": _TEXT, "type": _TEXT, "code": _OWN, "param": _OWN},
        }
    },
}
_OLLAMA_ERROR = {"type": "object", "required": ["error"], "properties": {"error": _TEXT}}
_ANTHROPIC_ERROR = {
    "type": "object",
    "required": ["type", "error"],
    "properties": {
        "type": {"const": "error"},
        "error": {"type": "object", "required": ["type", "message"], "properties": {"type": _TEXT, "message": _TEXT}},
        "request_id": _OWN,
    },
}
_ERRORS = {"openai": "OpenAIError", "anthropic": "AnthropicError", "ollama": "OllamaError"}
_STATE = {"type": "object", "required": ["status"], "properties": {"status": _TEXT}}
_GETS = ("/v1/models", "/v1/models/{model}", "/api/tags", "/api/version", "/api/ps", "/openapi.json")


def _content(**kinds: dict[str, Any]) -> dict[str, Any]:
    names = {
        **{"json": "application/json", "sse": "text/event-stream", "ndjson": "application/x-ndjson"},
        **{"text": "text/plain", "html": "text/html"},
    }
    return {names[kind]: {"schema": schema} for kind, schema in kinds.items()}


def _operation(path: str, content: dict[str, Any], **more: Any) -> dict[str, Any]:
    error = {"$ref": f"#/components/responses/{_ERRORS[api_of(path)]}"}
    responses = {"200": {"description": "success", "content": content}, "default": error}
    return {"responses": responses, **more}


def _post(path: str, schema: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    body = {"required": True, "content": {"application/json": {"schema": schema}}}
    return {"post": _operation(path, content, requestBody=body)}


def _answers(endpoint: Endpoint) -> dict[str, Any]:
    """What a success may be."""
    if not endpoint.stream:
        return _content(json=_OBJECT)
    return _content(json=_OBJECT, **{"ndjson" if endpoint.stream == "ndjson" else "sse": {}})


def _paths(schemas: Mapping[tuple[str, Engine], dict[str, Any]], fleet: dict[str, Any]) -> dict[str, Any]:
    model = {"name": "model", "in": "path", "required": True, "schema": _TEXT}
    paths: dict[str, Any] = {}
    for path in _GETS:
        more = {"parameters": [model]} if "{model}" in path else {}
        paths[path] = {"get": _operation(path, _content(json=_OBJECT), **more)}
    paths["/fleet"] = {"get": _operation("/fleet", _content(json=fleet))}
    for path, endpoint in ENDPOINTS.items():
        kinds = [schema for (each, _), schema in schemas.items() if each == path]
        if not kinds:
            continue
        paths[path] = _post(path, kinds[0] if len(kinds) == 1 else {"anyOf": kinds}, _answers(endpoint))
    named = {"type": "object", "required": ["model"], "properties": {"model": _TEXT, "verbose": {"type": "boolean"}}}
    paths["/api/show"] = _post("/api/show", named, _content(json=_OBJECT))
    paths["/"] = {"get": _operation("/", _content(text=_TEXT, html=_TEXT), security=[])}
    for path in ("/health", "/ready"):
        states = {status: {"description": "its state", "content": _content(json=_STATE)} for status in ("200", "503")}
        paths[path] = {"get": {"responses": states, "security": []}}
    return paths


def document(routes: Mapping[str, Route]) -> dict[str, Any]:
    """For the models of these names. Which fields a model takes depends on what serves it."""
    served = {key: model for key, model in MODELS.items() if any(route.engine == key[1] for route in routes.values())}
    every = [Fleet, *served.values()]
    (fleet, *found), components = msgspec.json.schema_components(every, ref_template="#/components/schemas/{name}")
    schemas = dict(zip(served, found, strict=True))
    for (_, engine), model in served.items():
        names = [name for name, route in routes.items() if route.engine == engine]
        components[model.__name__]["properties"]["model"] = {"type": "string", "enum": names}
    responses = {
        name: {"description": "any failure", "content": _content(json=schema)}
        for name, schema in zip(_ERRORS.values(), (_OPENAI_ERROR, _ANTHROPIC_ERROR, _OLLAMA_ERROR), strict=True)
    }
    ways = {"bearer": {"type": "http", "scheme": "bearer"}, "header": {"type": "apiKey", "in": "header", "name": "x-api-key"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "modelfleet", "version": "1"},
        "security": [{"bearer": []}, {"header": []}],
        "paths": _paths(schemas, fleet),
        "components": {"schemas": components, "responses": responses, "securitySchemes": ways},
    }


def add_to(app: web.Application, routing: Routing) -> None:
    made = functools.lru_cache(maxsize=16)(lambda names: document(dict(names)))

    async def show(request: web.Request) -> web.Response:
        seen = routing.seen_by(request[ACCOUNT].key.grant.models)
        return web.json_response(made(tuple((name, route) for name, (_, route) in seen.targets().items())))

    app.router.add_get("/openapi.json", show, allow_head=False)
