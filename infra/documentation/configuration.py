"""docs/configuration.md and docs/stack.schema.json, made from the settings themselves."""

import json
import textwrap
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Le
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from infra.program.settings import Settings
from infra.program.settings.keys import NAME, SETTING, ApiKeySettings
from infra.program.settings.model_servers import OLD, SECTION
from infra.program.settings.section import PROJECT

_WIDTH = 140
_MADE_AT_DEPLOYMENT = ("cluster", "images")
"""Sections that a committed stack file may leave out, because `make up` adds them."""
_SECRETS = {
    "apiKeys": "a map of names to keys for clients, and what each may use, in [keys.md](keys.md)",
    "cachePassword": "16 or more letters and digits",
    "externalKeys": "a map of the names of externalPools to their keys, in [pools.md](pools.md)",
    "kubeconfig": "content of the kubeconfig that has `cluster.context`, such as another stack's output; default: kubectl's",
    "registryAuth": "logins of private registries as a dockerconfigjson, in [images.md](images.md)",
    "sourceTokens": "where a source of models asks for a credential: a JSON map of `host` or `host:port` to a token or `user:password`",
    "verifierTls": "with images.trust: what `python -m infra.preparation.certificates NAMESPACE` prints",
}

_INTRODUCTION = f"""# Configuration

Made from `infra/program/settings/` by `python -m infra.documentation`; a test compares the two.

Each section is one Pulumi configuration key with an object as its value, in `Pulumi.<stack>.yaml`; `models` and `modelServers` are lists.
Unknown keys and values out of range are refused before any resource is made, all at once, one line each: `<path>: got X, want Y; do Z`.
Rules between sections, such as whether the models fit the GPU's memory, are in `infra/program/settings/constraints.py`.

Editors with a YAML language server complete and check the stack files by `stack.schema.json`, which their first line names.

Secrets stand beside the sections, set with `pulumi config set --secret`; with `governance.production` plain text is refused:

| key | value |
| --- | --- |
{chr(10).join(f"| `{PROJECT}:{name}` | {value} |" for name, value in _SECRETS.items())}
"""


def _type(annotation: Any) -> str:
    """`annotation` as a reader of YAML would say it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(argument) for argument in arguments)
    if origin in (list, dict):
        return f"{'list' if origin is list else 'map'} of {_type(arguments[-1])}"
    if origin is not None:
        return _type(arguments[0])
    return {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}[annotation]


def _constraints(field: FieldInfo) -> str:
    rules = [f"≥ {rule.ge}" for rule in field.metadata if isinstance(rule, Ge)]
    return ", ".join(rules + [f"≤ {rule.le}" for rule in field.metadata if isinstance(rule, Le)])


def _default(field: FieldInfo) -> str:
    return "required" if field.default is PydanticUndefined else f"`{json.dumps(field.default)}`"


def _rows(model: type[BaseModel], prefix: str = "", default: BaseModel | None = None) -> Iterator[str]:
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        annotation = field.annotation
        section = next(
            (each for each in (annotation, *get_args(annotation)) if isinstance(each, type) and issubclass(each, BaseModel)), None
        )
        if section is not None:
            yield from _rows(section, f"{key}.", field.default if isinstance(field.default, BaseModel) else None)
            continue
        kind = ", ".join(part for part in (_type(annotation), _constraints(field)) if part)
        value = _default(field) if default is None else f"`{json.dumps(getattr(default, name))}`"
        yield f"| `{key}` | {kind} | {value} | {' '.join((field.description or '').split())} |"


def document() -> str:
    """The whole page."""
    parts = [_INTRODUCTION]
    for name, field in Settings.model_fields.items():
        annotation: Any = field.annotation
        prefix = {list: "[].", dict: "<name>."}.get(get_origin(annotation), "")
        model: type[BaseModel] = get_args(annotation)[-1] if prefix else annotation
        parts.append(f"## `{PROJECT}:{field.alias or name}`\n")
        parts.append(f"{textwrap.fill(field.description, _WIDTH, break_on_hyphens=False)}\n" if field.description else "")
        parts.append("| key | type | default | meaning |\n| --- | --- | --- | --- |")
        parts.append("\n".join(_rows(model, prefix)) + "\n")
    return "\n".join(part for part in parts if part)


def _api_keys(secret: dict[str, Any]) -> dict[str, Any]:
    """Names with keys that are encrypted, each by itself, beside what everybody may read."""
    entry = ApiKeySettings.model_json_schema(by_alias=True)
    properties = {name: secret if name == "key" else form for name, form in entry["properties"].items()}
    return {"type": "object", "propertyNames": {"pattern": NAME}, "additionalProperties": {**entry, "properties": properties}}


def schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a whole `Pulumi.<stack>.yaml`."""
    generated = Settings.model_json_schema(by_alias=True)
    sections: dict[str, Any] = generated["properties"]
    secret = {"anyOf": [{"type": "string"}, {"type": "object", "required": ["secure"], "properties": {"secure": {"type": "string"}}}]}
    secrets = {f"{PROJECT}:{name}": {**secret, "description": want} for name, want in _SECRETS.items()}
    secrets[f"{PROJECT}:{SETTING}"]["anyOf"] = [*secret["anyOf"], _api_keys(secret)]
    old = {f"{PROJECT}:{OLD}": {"type": "object", "deprecated": True, "description": f"The old form of {SECTION}"}}
    keys = {f"{PROJECT}:{name}": section for name, section in sections.items()} | secrets | old
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A stack of modelfleet: Pulumi.<stack>.yaml",
        "$defs": generated["$defs"],
        "type": "object",
        "additionalProperties": False,
        "required": ["config"],
        "properties": {
            **{name: {"type": "string"} for name in ("secretsprovider", "encryptedkey", "encryptionsalt")},
            "environment": {},
            "config": {
                "type": "object",
                "properties": keys,
                "required": [f"{PROJECT}:{name}" for name in generated["required"] if name not in _MADE_AT_DEPLOYMENT],
                # Other projects' and providers' keys are their own; ours are all known.
                "propertyNames": {"if": {"pattern": f"^{PROJECT}:"}, "then": {"enum": sorted(keys)}},
            },
        },
    }


def schema_text() -> str:
    """The schema as JSON."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"
