"""Whatever stands in a stack's configuration, the user gets settings or lines that say what to do; never a traceback."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pulumi.runtime import config as runtime_config

from infra.program.settings import Settings, inputs, parse
from infra.program.settings.section import PROJECT, SettingsError
from tests.unit.test_settings import document

LINE = re.compile(r"^modelfleet:\S.*: got .+, want .+; .+$")
SECRETS = {"apiKeys": "fuzz-key-that-nobody-may-see", "cachePassword": "fuzzpasswordthatnobodymaysee"}

bounded = settings(max_examples=250, derandomize=True, deadline=None, database=None)
"""The same examples every time, in a few seconds."""

nasty = st.sampled_from(
    [
        "",
        "\n",
        "a\nb: got x",
        "1e400",
        "-1",
        "NaN",
        "٣Gi",
        "9" * 400 + "Gi",
        "1Gi\n",
        "\u2028",
        "\x00",
        "{}",
        "${x}",
        "0",
        "1Xi",
        "../..",
        "::",
    ]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.builds(lambda: 10**5000) | st.text(max_size=20) | nasty
documents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12) | nasty, inner, max_size=3), max_leaves=12
)
SECTIONS = [field.alias or name for name, field in Settings.model_fields.items()]


def check(load: Callable[[], Settings]) -> None:
    try:
        assert isinstance(load(), Settings)
    except SettingsError as error:
        for line in str(error).splitlines():
            assert LINE.match(line), line
        assert str(error)
        assert not [value for value in SECRETS.values() if value in str(error)]


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Of every node below the root."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, inner in items for found in [(*path, key), *paths(inner, (*path, key))]]


@bounded
@given(st.dictionaries(st.sampled_from(SECTIONS) | st.text(max_size=12) | nasty, documents, max_size=6))
def test_any_document_is_settings_or_a_refusal(anything: dict[str, Any]) -> None:
    check(lambda: parse(anything))


@bounded
@given(st.sampled_from(["dev", "prod"]), st.data())
def test_any_change_of_a_valid_document_is_settings_or_a_refusal(stack: str, data: st.DataObject) -> None:
    config = document(stack)
    for _ in range(data.draw(st.integers(1, 3))):
        *parents, last = data.draw(st.sampled_from(paths(config)))
        node = config
        for key in parents:
            node = node[key]
        change = data.draw(st.sampled_from(["replace", "remove", "add"]))
        if change == "remove":
            del node[last]
        elif change == "add" and isinstance(node, dict):
            node[data.draw(st.text(max_size=12) | nasty)] = data.draw(documents)
        else:
            node[last] = data.draw(documents)
        if not paths(config):
            break
    check(lambda: parse(config))


def text_of(value: Any) -> str:
    try:
        return json.dumps(value)
    except ValueError:
        return "1" * 5000


texts = (
    st.text(max_size=30)
    | st.sampled_from(["[" * 100_000, "1" * 5000, '{"a":', "NaN", '"x"', "[]", "{}", '{"replicas": 1e400}'])
    | documents.map(text_of)
)


@bounded
@given(st.dictionaries(st.sampled_from(SECTIONS) | st.from_regex(r"[a-zA-Z.]{1,8}", fullmatch=True), texts, max_size=4), st.booleans())
def test_any_text_in_a_section_is_settings_or_a_refusal(sections: dict[str, str], secrets: bool) -> None:
    config = {name: json.dumps(value) for name, value in document("prod").items()} | sections
    with_config(config | (SECRETS if secrets else {}), lambda: check(inputs.load))


def with_config(config: dict[str, str], action: Callable[[], object], encrypted: tuple[str, ...] = ()) -> None:
    """Run `action` as a program whose stack has this configuration."""
    before, secret_keys = runtime_config.CONFIG.get(), runtime_config._SECRET_KEYS.get()
    keys = [f"{PROJECT}:{name}" for name in encrypted]
    runtime_config.set_all_config({f"{PROJECT}:{name}": value for name, value in config.items()}, keys)
    try:
        action()
    finally:
        runtime_config.set_all_config(before, list(secret_keys))


GOOD = {"apiKeys": json.dumps(["a-key-of-sufficient-length"]), "cachePassword": "sufficientlylong1"}


def refusal(stack: str, encrypted: tuple[str, ...], raw: Mapping[str, str] | None = None, **changes: Any) -> str:
    """What is said against a stack with these changes; `raw` stands in the configuration as it is."""
    config = {name: json.dumps(value) for name, value in (document(stack) | changes).items()} | GOOD | {**(raw or {})}
    found: list[str] = []

    def load() -> None:
        try:
            inputs.load()
        except SettingsError as error:
            found.append(str(error))

    with_config(config, load, encrypted)
    return "\n".join(found)


def test_production_refuses_secrets_in_plain_text() -> None:
    assert refusal("prod", tuple(GOOD)) == ""
    lines = refusal("prod", ("apiKeys",)).splitlines()
    assert lines == [
        "modelfleet:cachePassword: got plain text, want it encrypted with governance.production; set it with --secret",
    ]
    assert "modelfleet:apiKeys: got plain text" in refusal("prod", ())


TOKENS = "hunter2-that-nobody-may-see"
PRIVATE = {"name": "smollm2:135m", "size": "100M", "kvBytesPerToken": 23040, "digest": f"sha256:{'0' * 64}"}


@pytest.mark.parametrize("tokens", ["", "{", [], ["a"], {"host": 1}, {"host": ""}, {"Host/path": "x"}, {"host": "two words"}])
def test_credentials_of_another_form_are_refused_and_not_echoed(tokens: Any) -> None:
    (line,) = refusal("dev", (), sourceTokens=tokens).splitlines()
    assert LINE.match(line)
    assert "modelfleet:sourceTokens: got another form, want a JSON map of host or host:port to a token or user:password; run" in line


def test_credentials_of_sources_are_secrets_like_the_others() -> None:
    tokens = {"models.example.com": TOKENS, "models.example.com:5000": f"reader:{TOKENS} with spaces"}
    assert refusal("dev", (), sourceTokens=tokens) == refusal("prod", (*GOOD, "sourceTokens"), sourceTokens=tokens) == ""
    assert refusal("prod", tuple(GOOD), sourceTokens=tokens) == (
        "modelfleet:sourceTokens: got plain text, want it encrypted with governance.production; set it with --secret"
    )


@pytest.mark.parametrize("source", ["http://198.51.100.7:5000/m.gguf", "registry+http://198.51.100.7:5000/m:1"])
def test_a_credential_for_a_source_without_tls_is_refused(source: str) -> None:
    for host in ("198.51.100.7", "198.51.100.7:5000"):
        said = refusal("dev", (), sourceTokens={host: TOKENS}, models=[{**PRIVATE, "source": source}])
        assert f"modelfleet:models.0.source: got {source.partition(':')[0]}:// and a credential for 198.51.100.7 in sourceTokens" in said
        assert TOKENS not in said
    assert refusal("dev", (), sourceTokens={"198.51.100.8": TOKENS}, models=[{**PRIVATE, "source": source}]) == ""


def test_a_rendering_has_no_secrets_to_encrypt() -> None:
    assert refusal("prod", (), cluster={"renderTo": "/somewhere"}) == ""


def test_dev_may_have_them_in_plain_text() -> None:
    assert refusal("dev", ()) == ""


def test_a_secret_section_is_not_echoed() -> None:
    assert "hunter2" not in (text := refusal("dev", ("monitoring",), monitoring="hunter2")), text
    assert "modelfleet:monitoring: got a secret value, want" in text


EXTERNAL = {"url": "https://models.example.com/v1", "networks": ["203.0.113.0/24"], "models": [{"id": "large", "contextLength": 4096}]}


@pytest.mark.parametrize("keys", ["", "{", [], ["a"], {"cloud": 1}, {"cloud": ""}, {"cloud": "two words"}])
def test_keys_of_pools_of_another_form_are_refused_and_not_echoed(keys: Any) -> None:
    (line,) = refusal("dev", (), externalKeys=keys, externalPools={"cloud": EXTERNAL}).splitlines()
    assert "modelfleet:externalKeys: got another form, want a JSON map of pool to key; run pulumi config set" in line


def test_a_key_of_a_pool_is_a_secret_for_a_pool_that_is_there_with_tls() -> None:
    keys = {"cloud": TOKENS}
    assert refusal("dev", (), externalKeys=keys, externalPools={"cloud": EXTERNAL}) == ""
    assert refusal("prod", tuple(GOOD), externalKeys=keys, externalPools={"cloud": EXTERNAL}) == (
        "modelfleet:externalKeys: got plain text, want it encrypted with governance.production; set it with --secret"
    )
    said = refusal("dev", (), externalKeys=keys, externalPools={"other": EXTERNAL})
    assert said == "modelfleet:externalKeys.cloud: got a key for no pool, want one of other; correct it"
    said = refusal("dev", (), externalKeys=keys, externalPools={"cloud": EXTERNAL | {"url": "http://models.example.com/v1"}})
    assert said.startswith("modelfleet:externalPools.cloud.url: got http:// and a key, want TLS")
    assert TOKENS not in said
