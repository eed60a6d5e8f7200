"""Bounds of JSON schemas. A server makes a grammar of each, in the thread that writes everybody's answers. Two hundred bytes can keep it
busy for hours, or end it: references that double at each step, long chains of them, patterns of parts that may all be empty.

Sources: llama.cpp, common/json-schema-to-grammar.cpp and src/llama-grammar.cpp, as packaged in xllamacpp 2026.10;
tests/service/test_schemas.py has what each bound keeps away.
"""

from collections.abc import Iterator
from typing import Any, NoReturn

from api_server import errors, patterns
from api_server.paths import Payload

_MOST_WAYS = 1000
"""In which an answer may go on at one place: values of an enum, alternatives, references among them followed. OpenAI's API has the same
number for the values of enums. Ten times as many cost five seconds of the engine."""
_MOST_OPTIONAL = 1_000_000
"""Sum, over all objects, of the squares of the numbers of properties that may be left out: 1,000 in one object."""
_DEEPEST = 300
"""Levels, references followed. 20,000 end the engine."""
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties")


def check(payload: Payload) -> None:
    """Raises ApiError 400 that names the field with a schema that no server should read. `payload`: as it goes on."""
    bounds = _Bounds()
    for where, schema in _schemas(payload):
        if isinstance(schema, dict):
            bounds.check(where, schema)


def _schemas(payload: Payload) -> Iterator[tuple[str, Any]]:
    """By their fields, in whichever API."""
    yield from _of_tools(payload.get("tools") or [], "tools")
    yield "json_schema", payload.get("json_schema")
    yield "format", payload.get("format")
    text = payload.get("text")
    for where, form in (("response_format", payload.get("response_format")), ("text.format", text.get("format") if text else None)):
        if isinstance(form, dict):
            yield where, form.get("schema")
            named = form.get("json_schema")
            yield where, named.get("schema") if isinstance(named, dict) else None


def _of_tools(tools: list[Payload], where: str) -> Iterator[tuple[str, Any]]:
    for index, tool in enumerate(tools):
        function = tool.get("function", tool)
        yield f"{where}[{index}]", function.get("parameters", function.get("input_schema"))
        # Codex's groups of them.
        yield from _of_tools(function.get("tools") or [], f"{where}[{index}].tools")


class _Bounds:
    """Of all schemas of a request."""

    def __init__(self) -> None:
        self._optional = 0
        self._known: dict[int, tuple[int, int]] = {}
        """By identity of a part: the ways to begin it, and the levels within it. A part that is being looked at has one way: it leads back
        to itself."""
        self._where, self._root = "", dict[str, Any]()

    def check(self, where: str, schema: Payload) -> None:
        self._where, self._root = where, schema
        self._look(schema, 0)

    def _look(self, part: Any, level: int) -> tuple[int, int]:
        if not isinstance(part, dict):
            return 1, 0
        if (known := self._known.get(id(part))) is None:
            self._within(level, "levels", _DEEPEST)
            self._known[id(part)] = 1, 0
            known = self._known[id(part)] = self._new(part, level)
        self._within(level + known[1], "levels", _DEEPEST)
        return known

    def _new(self, part: Payload, level: int) -> tuple[int, int]:
        ways, height = 0, 0
        for name in _LISTS:
            for each in part[name] if isinstance(part.get(name), list) else ():
                found = self._look(each, level + 1)
                ways, height = ways + (name != "prefixItems") * found[0], max(height, found[1])
        if isinstance(target := part.get("$ref"), str):
            found = self._look(self._referred(target), level + 1)
            ways, height = ways + found[0], max(height, found[1])
        inner = [part[name] for name in _SINGLE if name in part]
        if isinstance(properties := part.get("properties"), dict):
            inner += properties.values()
            required = part.get("required")
            self._optional += max(0, len(properties) - (len(required) if isinstance(required, list) else 0)) ** 2
            self._within(self._optional, "properties that may be left out, squared", _MOST_OPTIONAL)
        height = max([height, *(self._look(each, level + 1)[1] for each in inner)])
        ways += sum(len(part[name]) for name in ("enum", "type") if isinstance(part.get(name), list))
        if isinstance(pattern := part.get("pattern"), str) and not patterns.is_cheap(pattern):
            self._refuse(f"pattern {errors.shown(pattern)}, want one of fewer alternatives and parts that may be left out")
        return self._within(max(1, ways), "ways to go on at one place", _MOST_WAYS), height + 1

    def _referred(self, target: str) -> Any:
        """The part of the schema that a reference names. None: there is none, which the server says."""
        found: Any = self._root
        for step in target.removeprefix("#").split("/")[1:]:
            if isinstance(found, dict):
                found = found.get(step.replace("~1", "/").replace("~0", "~"))
            elif isinstance(found, list) and step.isdecimal() and len(step) < 9 and int(step) < len(found):
                found = found[int(step)]
            else:
                return None
        return found

    def _within(self, count: int, of: str, most: int) -> int:
        if count > most:
            self._refuse(f"a schema of more than {most} {of}, want fewer")
        return count

    def _refuse(self, got: str) -> NoReturn:
        raise errors.bad_request(f"{self._where}: got {got}; make it simpler", self._where.partition("[")[0].partition(".")[0])
