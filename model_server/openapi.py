"""The OpenAPI document: the endpoints, and the shape of every error."""

from collections.abc import Mapping
from typing import Any

from model_server.endpoints import Api, Endpoint

_TEXT: dict[str, Any] = {"type": "string"}
_OPTIONAL: dict[str, Any] = {"type": ["string", "null"]}


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


_ERRORS = {
    "openai": _object(error=_object(message=_TEXT, type=_TEXT, code=_OPTIONAL, param=_OPTIONAL)),
    "anthropic": _object(type={"const": "error"}, error=_object(type=_TEXT, message=_TEXT)),
}
_FIELDS: dict[str, dict[str, Any]] = {
    "messages": {"type": "array", "minItems": 1, "items": {"type": "object"}},
    "content": _TEXT,
    "documents": {"type": "array", "minItems": 1},
    "tokens": {"type": "array", "minItems": 1, "items": {"type": "integer"}},
    "prompt": {},
    "input": {},
}
"""The fields that must be there; the engine has the others."""
_STATE: dict[str, Any] = {"type": "object", "required": ["status"], "properties": {"status": {"type": "string"}}}


def _answer(*kinds: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    return {"description": "success", "content": {kind: {"schema": schema} for kind, schema in kinds}}


def _error(api: Api) -> dict[str, Any]:
    return {"description": "any failure", "content": {"application/json": {"schema": _ERRORS[api]}}}


def _get(*kinds: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    return {"get": {"responses": {"200": _answer(*kinds), "default": _error("openai")}}}


def _post(endpoint: Endpoint) -> dict[str, Any]:
    fields = {endpoint.required: _FIELDS[endpoint.required]}
    if endpoint.names_model:
        fields["model"] = _TEXT
    kinds: list[tuple[str, dict[str, Any]]] = [("application/json", {"type": "object"}), ("text/event-stream", {})]
    return {
        "post": {
            "requestBody": {"required": True, "content": {"application/json": {"schema": _object(**fields)}}},
            "responses": {"200": _answer(*kinds), "default": _error(endpoint.api)},
        }
    }


_PROBE = {"get": {"responses": {status: _answer(("application/json", _STATE)) for status in ("200", "503")}}}


def document(endpoints: Mapping[str, Endpoint]) -> dict[str, Any]:
    """Of a server whose engine has these endpoints."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "modelfleet: one model", "version": "1"},
        "paths": {
            **{path: _post(endpoint) for path, endpoint in endpoints.items()},
            "/v1/models": _get(("application/json", {"type": "object"})),
            "/openapi.json": _get(("application/json", {"type": "object"})),
            "/metrics": _get(("text/plain", {"type": "string"})),
            "/health": _PROBE,
            "/ready": _PROBE,
        },
    }


def named(found: Mapping[str, Any]) -> list[str]:
    """Method and path of everything in a document."""
    return [f"{method.upper()} {path}" for path, methods in found["paths"].items() for method in methods]
