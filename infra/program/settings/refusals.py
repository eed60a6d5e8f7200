"""Refusals that a person can act on: pydantic's errors in the form `<path>: got X, want Y; do Z`, one line each."""

import json
import re
import reprlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from infra.program.settings.section import PROJECT

_Location = tuple[int | str, ...]
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 120
_short.maxlevel = 3


def shown(value: object) -> str:
    """`value` on one line, cut where it is long or deep."""
    try:
        return _short.repr(value)
    except ValueError:
        return "a number of thousands of digits"


def key(name: str) -> str:
    """A key as a part of a path. A key with other characters is quoted, so that the message stays on one line."""
    return name if re.fullmatch(r"[A-Za-z0-9_.-]{1,80}", name) else json.dumps(name[:80])


def lines(error: ValidationError, document: Mapping[str, Any], root: type[BaseModel], secret: Collection[str]) -> Iterator[str]:
    """One line a problem; `document` is what `root` refused, and values below the keys in `secret` stay hidden."""
    for each in error.errors(include_url=False, include_context=False, include_input=False):
        yield from _lines(each["type"], each["loc"], str(each["msg"]), document, root, secret)


def _lines(
    kind: str, location: _Location, message: str, document: Mapping[str, Any], root: type[BaseModel], secret: Collection[str]
) -> Iterator[str]:
    path = f"{PROJECT}:" + ".".join(key(str(part)) for part in location)
    value = _value(document, location)
    got = "a secret value" if location and location[0] in secret else shown(value)
    message = message.removeprefix("Value error, ")
    if kind == "missing":
        yield f"{path}: got nothing, want a value; set it in Pulumi.<stack>.yaml (docs/configuration.md)"
    elif kind == "extra_forbidden":
        names = sorted(field.alias or name for name, field in _model(root, location).model_fields.items())
        yield f"{path}: got an unknown key, want one of {', '.join(names)}; correct or remove it"
    elif kind == "value_error" and isinstance(value, Mapping):
        # A rule of a whole section names the keys itself.
        yield from (f"{path}{'.' if location else ''}{line}" for line in message.splitlines())
    elif kind == "value_error":
        yield f"{path}: got {got}, {message}"
    else:
        rule = re.sub(r"^(Input|String|List|Value|Keys?) should ", "", message).removeprefix("be ")
        yield f"{path}: got {got}, want {rule[0].lower()}{rule[1:]}; correct it (docs/configuration.md)"


def _value(document: Any, location: _Location) -> Any:
    for part in location:
        if isinstance(document, Mapping):
            document = document.get(part)
        elif isinstance(document, list) and isinstance(part, int):
            document = document[part]
        else:
            return None
    return document


def _model(root: type[BaseModel], location: _Location) -> type[BaseModel]:
    """The model that the parent of an unknown key belongs to."""
    model = root
    for part in location[:-1]:
        found = next((field for name, field in model.model_fields.items() if part in (field.alias, name)), None)
        model = next(_models(found.annotation), model) if found is not None else model
    return model


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models within an annotation such as `list[Model]` or `Model | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)
