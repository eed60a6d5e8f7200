"""Tools of chat, in the form that every engine takes, and the choice of one of them.

| what comes                                    | what goes on                   | why                                               |
| --------------------------------------------- | ------------------------------ | ------------------------------------------------- |
| a function without parameters, or properties  | one with none of them          | Ollama says null, its engine: 400                 |
| a tool without a type                         | a function                     | Ollama's engine: 500, retried; llama.cpp: 400     |
| a tool of another type                        | 400                            | the same                                          |
| a field that is not in `_FIELDS`              | nothing                        | Go reads names without regard to case             |
| the choice of one by name                     | that one alone, and `required` | llama.cpp takes it for `auto`                     |
"""

from typing import Any

from api_server import errors
from api_server.paths import Payload

_FIELDS = ("name", "description", "strict")
"""Of a function, beside its parameters."""


def functions(tools: list[Any]) -> list[Payload]:
    """The tools of a chat. Raises ApiError 400 that names the one that is none."""
    kept: list[Payload] = []
    for index, tool in enumerate(tools):
        given = tool if isinstance(tool, dict) else {}
        function = given.get("function")
        if (given.get("type") or "function") != "function" or not isinstance(function, dict) or not isinstance(function.get("name"), str):
            got = errors.shown(given.get("type") or tool)
            raise errors.bad_request(
                f"tools[{index}]: got {got}, want a function with a name; nothing here runs tools for a client", "tools"
            )
        own = {key: function[key] for key in _FIELDS if function.get(key) is not None}
        own["parameters"] = whole_schema(function.get("parameters"), f"tools[{index}].function.parameters")
        kept.append({"type": "function", "function": own})
    return kept


def whole_schema(schema: Any, where: str) -> Payload:
    """Of a tool's arguments. Ollama says null for properties that are not there, and its engine refuses that. Raises ApiError 400."""
    if schema is not None and not isinstance(schema, dict):
        raise errors.bad_request(f"{where}: got {type(schema).__name__}, want a JSON schema of an object; correct it", "tools")
    return {"type": "object", "properties": {}} | {key: value for key, value in (schema or {}).items() if value is not None}


def chosen(payload: Payload) -> Payload:
    """The choice of a function by name, as every engine honours it. Raises ApiError 400 on a choice that none knows."""
    choice = payload.get("tool_choice")
    if not isinstance(choice, dict):
        return {}
    function = choice.get("function")
    name = function.get("name") if choice.get("type") == "function" and isinstance(function, dict) else None
    return {"tools": only(payload.get("tools") or [], name, lambda tool: tool["function"]["name"]), "tool_choice": "required"}


def only(tools: list[Payload], name: Any, name_of: Any) -> list[Payload]:
    """The tools of a name. Raises ApiError 400 where there is none."""
    if found := [tool for tool in tools if name_of(tool) == name]:
        return found
    want = "auto, none, required, or a function of tools by its name; send only the tools that may be called"
    raise errors.bad_request(f"tool_choice: got {errors.shown(name)}, want {want}", "tool_choice")
