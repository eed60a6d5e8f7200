"""The secret `registryAuth`: what is refused when settings are read, and that a refusal shows nothing of it."""

import json
import re

import pytest

from tests.unit.test_settings_fuzz import GOOD, LINE
from tests.unit.test_settings_fuzz import refusal as refusal_of

PASSWORD = "hunter2hunter2"
LOGIN = {"username": "puller", "password": PASSWORD}


def refusal(text: str, *, stack: str = "dev", encrypted: tuple[str, ...] = ()) -> str:
    return refusal_of(stack, encrypted, {"registryAuth": text})


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (PASSWORD, "no JSON"),
        ("", "no JSON"),
        ("[" * 100_000, "no JSON"),
        (json.dumps([PASSWORD]), "another form"),
        (json.dumps({"auths": {}}), "another form"),
        (json.dumps({"auths": {"r.example": LOGIN}, "credsStore": "desktop"}), "another form"),
        (json.dumps({"registry.example.com": LOGIN}), "another form"),
        (json.dumps({"auths": {f"r.example/{PASSWORD}?": LOGIN}}), "an entry that is not under a registry's host"),
        (json.dumps({"auths": {"*.example": LOGIN}}), "an entry that is not under a registry's host"),
        (json.dumps({"auths": {"r.example": {}}}), "an entry without a login (a credential helper may have it)"),
        (json.dumps({"auths": {"r.example": {"identitytoken": PASSWORD}}}), "an entry without a login (a credential helper may have it)"),
        (json.dumps({"auths": {"r.example": {"username": 1, "password": PASSWORD}}}), "an entry without a login"),
        (json.dumps({"auths": {"r.example": {"auth": PASSWORD + "!"}}}), "an auth that is not base64"),
        (json.dumps({"auths": {"r.example": {"auth": "cHVsbGVy"}}}), "an entry without one user name and one password"),
        (json.dumps({"auths": {"r.example": {"auth": "YTpi", **LOGIN}}}), "an entry without one user name and one password"),
    ],
)
def test_another_form_is_refused_without_being_shown(value: str, got: str) -> None:
    (line,) = refusal(value).splitlines()
    assert line.startswith(f"modelfleet:registryAuth: got {got}")
    assert LINE.match(line)
    assert PASSWORD not in line


def test_a_good_one_is_taken() -> None:
    assert refusal(json.dumps({"auths": {"registry.example.com:5000": LOGIN}})) == ""


def test_production_wants_it_encrypted() -> None:
    text = json.dumps({"auths": {"registry.example.com:5000": LOGIN}})
    line = refusal(text, stack="prod", encrypted=tuple(GOOD))
    assert re.fullmatch(r"modelfleet:registryAuth: got plain text, want it encrypted with governance\.production; .*", line)
    assert refusal(text, stack="prod", encrypted=(*GOOD, "registryAuth")) == ""
