"""The OpenAPI document: the endpoints, and the shape of every error."""

from typing import Any

_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code", "param"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "code": {"type": ["string", "null"]},
                "param": {"type": ["string", "null"]},
            },
        }
    },
}
_CHAT: dict[str, Any] = {
    "type": "object",
    "required": ["model", "messages"],
    "properties": {
        "model": {"type": "string"},
        "messages": {"type": "array", "minItems": 1, "items": {"type": "object"}},
        "stream": {"type": "boolean"},
    },
}
"""The fields that this server reads itself; the engine has the others: llama.cpp, tools/server/README.md."""
_STATE: dict[str, Any] = {"type": "object", "required": ["status"], "properties": {"status": {"type": "string"}}}


def _answer(*kinds: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    return {"description": "success", "content": {kind: {"schema": schema} for kind, schema in kinds}}


def _get(*kinds: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    return {"get": {"responses": {"200": _answer(*kinds), "default": {"$ref": "#/components/responses/Error"}}}}


_PROBE = {"get": {"responses": {status: _answer(("application/json", _STATE)) for status in ("200", "503")}}}
DOCUMENT: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "modelfleet: one model", "version": "1"},
    "paths": {
        "/v1/chat/completions": {
            "post": {
                "requestBody": {"required": True, "content": {"application/json": {"schema": _CHAT}}},
                "responses": {
                    "200": _answer(("application/json", {"type": "object"}), ("text/event-stream", {})),
                    "default": {"$ref": "#/components/responses/Error"},
                },
            }
        },
        "/v1/models": _get(("application/json", {"type": "object"})),
        "/openapi.json": _get(("application/json", {"type": "object"})),
        "/metrics": _get(("text/plain", {"type": "string"})),
        "/health": _PROBE,
        "/ready": _PROBE,
    },
    "components": {"responses": {"Error": {"description": "any failure", "content": {"application/json": {"schema": _ERROR}}}}},
}
ENDPOINTS = [f"{method.upper()} {path}" for path, methods in DOCUMENT["paths"].items() for method in methods]
