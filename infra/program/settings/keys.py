"""Keys of the API server, in the configuration secret `apiKeys`: checked without a word of a key in any message."""

import json
from collections import Counter
from collections.abc import Collection, Iterator
from datetime import datetime
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator, model_validator

from infra.program.settings import refusals
from infra.program.settings.models import ALIAS
from infra.program.settings.section import PROJECT, Section

SETTING = "apiKeys"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,62}$"
"""The API server takes no other: it stands in its log and in labels of its metrics."""
MIN_LENGTH = 16
_OLD, _MASKED = "key-", "masked-in-the-rendering"
_PATH = f"{PROJECT}:{SETTING}"
WANT = (
    f'a map of names to {{"key": "{MIN_LENGTH} or more printable characters"}}; '
    f"run pulumi config set --path {SETTING}.NAME.key --secret (docs/keys.md)"
)


class ApiKeySettings(Section):
    """A key, and what it may use."""

    key: str
    """The key itself. Clients send it without the spaces around it."""
    owner: str | None = Field(default=None, max_length=200)
    """A person or a team, for people."""
    expires: str | None = None
    """A date, which counts to its end, or a date with a time; UTC unless it says another zone."""
    models: list[Annotated[str, Field(pattern=ALIAS)]] | None = Field(default=None, min_length=1)
    """Ids and aliases that the key sees; without it, all."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    """Of any kind, at each API server."""
    tokens_per_minute: int | None = Field(default=None, ge=1)
    """Of prompts and answers, at each API server."""
    concurrency: int | None = Field(default=None, ge=1)
    """Requests at once, at each API server."""
    priority: int | None = Field(default=None, ge=-10, le=10)
    """Whose requests get a free place first: the highest. Without it, 0."""

    @field_validator("key")
    @classmethod
    def _long(cls, key: str) -> str:
        if len(key.strip()) < MIN_LENGTH or not key.strip().isprintable():
            raise ValueError(f"want {MIN_LENGTH} or more printable characters; make another key")
        return key.strip()

    @field_validator("expires")
    @classmethod
    def _date(cls, expires: str | None) -> str | None:
        try:
            # The last day that Python knows has no end.
            known = expires is None or datetime.fromisoformat(expires).year < 9999
        except ValueError:
            known = False
        if not known:
            raise ValueError("want a date such as 2027-01-31, with or without a time; correct it")
        return expires


class _Keys(Section):
    api_keys: dict[Annotated[str, Field(pattern=NAME)], ApiKeySettings] = Field(min_length=1, max_length=500)

    @model_validator(mode="after")
    def _differ(self) -> "_Keys":
        uses = Counter(each.key for each in self.api_keys.values())
        twice = [name for name, each in self.api_keys.items() if uses[each.key] > 1]
        if twice:
            raise ValueError(f"{SETTING}: got one key for {' and '.join(twice[:2])}, want another key for each; make one")
        return self


def is_old(value: Any) -> bool:
    """Whether these are keys without names."""
    return isinstance(value, list)


def named(value: Any) -> dict[str, dict[str, Any]]:
    """Name to key and what it may use, of a value without problems."""
    return {name: entry.model_dump(by_alias=True, exclude_none=True) for name, entry in _parsed(value).items()}


def problems(value: Any, models: Collection[str] | None) -> Iterator[str]:
    """What is wrong with a value of the configuration. `models`: ids and aliases that the stack has; None where that is not known."""
    if not _has_form(value):
        yield f"{_PATH}: got another form, want {WANT}"
        return
    try:
        keys = _parsed(value)
    except ValidationError as error:
        yield from refusals.lines(error, {SETTING: with_names(value)}, _Keys, {SETTING})
        return
    for name, entry in keys.items():
        for index, model in enumerate(entry.models or []):
            if models is not None and model not in models:
                yield f"{_PATH}.{name}.models.{index}: got {model}, want one of {', '.join(models)}; correct it, or add the model"


def old_form(value: Any) -> str:
    """What is said of a list of keys."""
    first, *more = with_names(value)
    names = f"{first} to {more[-1]}" if more else first
    return f"{_PATH}: got a list, the old form, want a map of names; the keys are {names} until they have names (docs/keys.md)"


def _has_form(value: Any) -> bool:
    """Whether names and keys are where they belong: a message about anything below would show the name, which might then be the key."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(key, str) for key in value)
    return isinstance(value, dict) and bool(value) and all(isinstance(entry, dict) for entry in value.values())


def with_names(value: Any) -> dict[str, Any]:
    """A value of the right form as a map, whichever form it has."""
    return {f"{_OLD}{number}": {"key": key} for number, key in enumerate(dict.fromkeys(value), 1)} if is_old(value) else value


def _parsed(value: Any) -> dict[str, ApiKeySettings]:
    return _Keys.model_validate({SETTING: with_names(value)}).api_keys


def widest(value: Any) -> str:
    """The key with the fewest bounds, of a value without problems: `make up` asks every model with it."""
    entries = with_names(value).values()
    return str(min(entries, key=lambda entry: len(entry.keys() - {"key", "owner", "priority"}))["key"])


def masked(committed: Any) -> str:
    """Keys for a rendering, in place of those that only the stack can decrypt; everything else is as it was committed."""
    if not isinstance(committed, dict) or "secure" in committed:
        return json.dumps({"masked": {"key": _MASKED}})
    known = {
        name: {part: value for part, value in entry.items() if not isinstance(value, dict)}
        for name, entry in committed.items()
        if isinstance(entry, dict)
    }
    return json.dumps({name: {**entry, "key": f"{_MASKED}-of-{name}"} for name, entry in known.items()})
