"""docs/configuration.md, made from the settings themselves: `python -m infra.configuration > docs/configuration.md`."""

import json
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from infra.settings import PROJECT, Settings

_INTRODUCTION = """# Configuration

Made from `infra/settings.py` by `python -m infra.configuration`; a test compares the two.

Each section is one Pulumi configuration key with an object as its value, in `Pulumi.<stack>.yaml`. Unknown keys and values out of
range are refused before any resource is made, all at once, one line each: `<path>: got X, want Y; do Z`.

Two secrets stand beside the sections, set with `pulumi config set --secret`:

| key | value |
| --- | --- |
| `modelfleet:apiKeys` | a JSON list of keys for clients, each of 16 or more characters |
| `modelfleet:cachePassword` | 16 or more letters and digits |
"""


def _type(annotation: Any) -> str:
    text = getattr(annotation, "__name__", None) if isinstance(annotation, type) else None
    text = text or str(annotation)
    return text.replace("typing.", "").replace("infra.settings.", "").replace("|", "\\|")


def _constraints(field: Any) -> str:
    rules = [f"{name} {getattr(rule, name)}" for rule in field.metadata for name in ("ge", "le") if getattr(rule, name, None) is not None]
    return ", ".join(rule.replace("ge ", "≥ ").replace("le ", "≤ ") for rule in rules)


def _default(field: Any) -> str:
    if field.default is PydanticUndefined:
        return "required"
    return f"`{json.dumps(field.default)}`"


def _rows(model: type[BaseModel], prefix: str = "") -> list[str]:
    rows: list[str] = []
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            rows += _rows(annotation, f"{key}.")
            continue
        kind = ", ".join(part for part in (_type(annotation), _constraints(field)) if part)
        rows.append(f"| `{key}` | {kind} | {_default(field)} | {' '.join((field.description or '').split())} |")
    return rows


def document() -> str:
    """The whole page."""
    parts = [_INTRODUCTION]
    for name, field in Settings.model_fields.items():
        model = field.annotation
        assert isinstance(model, type)  # noqa: S101 (every section is a model)
        parts.append(f"## `{PROJECT}:{field.alias or name}`\n\n| key | type | default | meaning |\n| --- | --- | --- | --- |")
        parts.append("\n".join(_rows(model)) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(document(), end="")
