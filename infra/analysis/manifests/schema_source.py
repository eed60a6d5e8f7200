"""Makes kubernetes.schema.json from the OpenAPI v3 document of the embedded cluster's API server.

Run `make up`, then `python -m infra.analysis.manifests.schema_source`. A test of the cluster tier compares the file with the server.
"""

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from devcluster import controlplane
from devcluster.layout import default_name, load
from infra.analysis.manifests.schema import KINDS, SCHEMAS

_REFERENCE = "#/components/schemas/"
_KEPT = ("type", "properties", "items", "additionalProperties", "required", "enum", "oneOf", "anyOf")


def _strict(schema: Any) -> Any:
    """The part that says what is valid: no prose, no defaults, and nothing beside the known properties."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return {"$ref": "#/$defs/" + schema["$ref"].removeprefix(_REFERENCE)}
    if len(schema.get("allOf", [])) == 1:
        # How OpenAPI 3.0 puts a description beside a reference.
        return _strict(schema["allOf"][0])
    kept: dict[str, Any] = {key: _strict(value) for key, value in schema.items() if key in _KEPT and key != "properties"}
    if "properties" in schema:
        kept["properties"] = {name: _strict(value) for name, value in schema["properties"].items()}
        kept.setdefault("additionalProperties", False)
    return kept


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield str(schema["$ref"]).removeprefix("#/$defs/")
        for value in schema.values():
            yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)


def generate(fetch: Callable[[str], Any]) -> dict[str, Any]:
    """The content of SCHEMAS. `fetch` reads a path below /openapi/v3 of an API server, e.g. `apis/apps/v1`."""
    kinds: dict[str, str] = {}
    definitions: dict[str, Any] = {}
    for version, names in KINDS.items():
        schemas = fetch(f"apis/{version}" if "/" in version else f"api/{version}")["components"]["schemas"]
        waiting: list[str] = []
        for name, schema in schemas.items():
            for known in schema.get("x-kubernetes-group-version-kind", []):
                api_version = "/".join(part for part in (known["group"], known["version"]) if part)
                if api_version == version and known["kind"] in names:
                    kinds[f"{version}/{known['kind']}"] = name
                    waiting.append(name)
                    # The server writes it; a rendering must not.
                    schema["properties"].pop("status", None)
        while waiting:
            name = waiting.pop()
            if name not in definitions:
                definitions[name] = _strict(schemas[name])
                waiting += _references(definitions[name])
    return {"kinds": kinds, "$defs": definitions}


def dump(document: dict[str, Any]) -> str:
    """Compact, sorted, one definition a line."""

    def lines(part: dict[str, Any]) -> str:
        return ",\n".join(f"{json.dumps(name)}:{json.dumps(part[name], separators=(',', ':'), sort_keys=True)}" for name in sorted(part))

    return f'{{"kinds":{{\n{lines(document["kinds"])}\n}},"$defs":{{\n{lines(document["$defs"])}\n}}}}\n'


def main() -> int:
    cluster = load(default_name())
    if cluster is None:
        print("error: devcluster: got none running, want one; run make up", file=sys.stderr)
        return 1
    with controlplane.client(cluster) as api:
        SCHEMAS.write_text(dump(generate(lambda path: api.get(f"/openapi/v3/{path}").raise_for_status().json())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
