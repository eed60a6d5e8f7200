"""What Pulumi hands to the program: the sections and secrets of the current stack, read and checked."""

import json
import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pulumi
import yaml
from pulumi.runtime import config as runtime_config

from components.registry_auth import logins
from infra.program.settings import Settings, keys, model_servers, parse
from infra.program.settings.section import PROJECT, SettingsError

_VERIFIER_TLS = "verifierTls"
_API_SERVER_TLS = "apiServerTls"
_REGISTRY_AUTH = "registryAuth"
_SOURCE_TOKENS = "sourceTokens"
_EXTERNAL_KEYS = "externalKeys"
_KUBECONFIG = "kubeconfig"
_HOST = r"([a-z0-9][a-z0-9.-]{0,252}|\[[0-9a-f:]+\])(:[0-9]{1,5})?"
_SECRETS = {
    keys.SETTING: keys.WANT,
    "cachePassword": "16 or more letters and digits; run pulumi config set --secret cachePassword",
}


def load() -> Settings:
    """Settings and secrets of the current stack, checked. Raises SettingsError with all problems."""
    document: dict[str, Any] = {}
    hidden: set[str] = set()
    for name in _configured_keys():
        if name not in (*_SECRETS, _VERIFIER_TLS, _API_SERVER_TLS, _REGISTRY_AUTH, _SOURCE_TOKENS, _EXTERNAL_KEYS, _KUBECONFIG):
            document[name] = _decoded(pulumi.Config(PROJECT).get(name) or "")
            if _is_secret(name):
                hidden.add(name)
    problems: list[str] = []
    settings: Settings | None = None
    try:
        settings = parse(document, hidden)
    except SettingsError as error:
        problems.append(str(error))
    encrypted = settings is not None and _must_be_encrypted(settings)
    problems += [
        *_secret_problems(encrypted=encrypted),
        *_key_problems(settings),
        *_registry_auth_problems(encrypted=encrypted),
        *_token_problems(settings, encrypted=encrypted),
        *_external_key_problems(settings, encrypted=encrypted),
        *_kubeconfig_problems(encrypted=encrypted),
    ]
    if settings is not None and settings.images.trust is not None and not verifier_tls():
        problems.append(
            f"{PROJECT}:{_VERIFIER_TLS}: got nothing, want certificate and key of the image verifier; "
            f"run python -m infra.preparation.certificates {settings.cluster.namespace} | pulumi config set --secret {_VERIFIER_TLS}"
        )
    problems += _own_certificate_problems(settings, encrypted=encrypted)
    if problems or settings is None:
        raise SettingsError("\n".join(problems))
    if keys.is_old(found := _decoded(pulumi.Config(PROJECT).require(keys.SETTING))):
        pulumi.log.warn(keys.old_form(found))
    if model_servers.is_old(document):
        pulumi.log.warn(model_servers.old_form())
    return settings


def verifier_tls() -> dict[str, str]:
    """Certificate and private key of the image verifier in PEM. Empty when they are missing or have another form."""
    pair = _decoded(pulumi.Config(PROJECT).get(_VERIFIER_TLS) or "")
    return pair if isinstance(pair, dict) and set(pair) == {"certificate", "privateKey"} else {}


def api_server_tls() -> dict[str, str]:
    """The API server's certificate and private key, and the authority which signed it, in PEM. Empty when they are missing or have another
    form. The authority's own key goes no further than here."""
    found = _decoded(pulumi.Config(PROJECT).get(_API_SERVER_TLS) or "")
    parts = ("certificate", "privateKey", "authority")
    good = isinstance(found, dict) and all(isinstance(found.get(part), str) for part in parts)
    return {part: found[part] for part in parts} if good else {}


def _own_certificate_problems(settings: Settings | None, *, encrypted: bool) -> Iterator[str]:
    if settings is None or settings.api_server.tls is None or not settings.api_server.tls.own:
        return
    if not api_server_tls():
        made = f"infra.preparation.certificates {settings.cluster.namespace} --api-server {settings.api_server.host or ''}".strip()
        yield (
            f"{PROJECT}:{_API_SERVER_TLS}: got nothing with apiServer.tls.own, want its certificate and authority; "
            f"run python -m {made} | pulumi config set --secret {_API_SERVER_TLS}"
        )
    elif encrypted and not _is_secret(_API_SERVER_TLS):
        yield _plain_text(_API_SERVER_TLS)


def kubeconfig() -> dict[str, Any] | None:
    """Content of the kubeconfig that has the stack's context; None for the one that kubectl finds."""
    text = pulumi.Config(PROJECT).get(_KUBECONFIG)
    return yaml.safe_load(text) if text else None


def registry_auth() -> pulumi.Output[str] | None:
    """dockerconfigjson with the logins of private registries, a secret. None where no registry asks for a login."""
    text = pulumi.Config(PROJECT).get(_REGISTRY_AUTH)
    return pulumi.Output.secret(text) if text else None


def api_keys() -> pulumi.Output[dict[str, dict[str, Any]]]:
    """The keys of the clients by name, and what each may use; a secret."""
    return pulumi.Config(PROJECT).require_secret_object(keys.SETTING).apply(keys.named)


def cache_password() -> pulumi.Output[str]:
    """The password of the cache server, a secret."""
    return pulumi.Config(PROJECT).require_secret("cachePassword")


def source_tokens() -> pulumi.Output[str] | None:
    """JSON map of a source's host to a credential, a secret; None where no source asks for one."""
    return pulumi.Config(PROJECT).get_secret(_SOURCE_TOKENS)


def external_keys() -> pulumi.Output[str] | None:
    """JSON map of an external pool to its key, a secret; None where no pool asks for one."""
    return pulumi.Config(PROJECT).get_secret(_EXTERNAL_KEYS)


def _external_key_problems(settings: Settings | None, *, encrypted: bool) -> Iterator[str]:
    path, text = f"{PROJECT}:{_EXTERNAL_KEYS}", pulumi.Config(PROJECT).get(_EXTERNAL_KEYS)
    if text is None:
        return
    found = _decoded(text)
    if not isinstance(found, dict) or not all(isinstance(key, str) and re.fullmatch(r"[!-~]{1,16384}", key) for key in found.values()):
        yield f"{path}: got another form, want a JSON map of pool to key; run pulumi config set --path {_EXTERNAL_KEYS}.POOL --secret"
        return
    if encrypted and not _is_secret(_EXTERNAL_KEYS):
        yield _plain_text(_EXTERNAL_KEYS)
    if settings is None or settings.cluster.render_to is not None:
        return
    for name in sorted(found):
        pool = settings.external_pools.get(name)
        if pool is None:
            yield f"{path}.{name}: got a key for no pool, want one of {', '.join(settings.external_pools) or 'none'}; correct it"
        elif pool.url.startswith("http:"):
            want = "want TLS, or everybody on the way could read it; use https://"
            yield f"{PROJECT}:externalPools.{name}.url: got http:// and a key, {want}"


def _kubeconfig_problems(*, encrypted: bool) -> Iterator[str]:
    path, text = f"{PROJECT}:{_KUBECONFIG}", pulumi.Config(PROJECT).get(_KUBECONFIG)
    if text is None:
        return
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        found = None
    named = [each.get("name") for each in found.get("contexts") or [] if isinstance(each, dict)] if isinstance(found, dict) else []
    if not named or not all(isinstance(name, str) for name in named):
        yield f"{path}: got another form, want a kubeconfig with contexts; run pulumi config set --secret {_KUBECONFIG} < FILE"
    if encrypted and not _is_secret(_KUBECONFIG):
        yield _plain_text(_KUBECONFIG)


def _key_problems(settings: Settings | None) -> Iterator[str]:
    text = pulumi.Config(PROJECT).get(keys.SETTING)
    if text is not None:
        yield from keys.problems(_decoded(text), None if settings is None else [*settings.ids, *settings.aliases])


def _registry_auth_problems(*, encrypted: bool) -> Iterator[str]:
    path, text = f"{PROJECT}:{_REGISTRY_AUTH}", pulumi.Config(PROJECT).get(_REGISTRY_AUTH)
    if text is None:
        return
    try:
        logins(text)
    except ValueError as error:
        want = '{"auths": {"registry.example.com": {"username": "…", "password": "…"}}} or its base64 as "auth"'
        yield f"{path}: got {error}, want {want}; make it as docs/images.md shows"
    if encrypted and not _is_secret(_REGISTRY_AUTH):
        yield _plain_text(_REGISTRY_AUTH)


def _token_problems(settings: Settings | None, *, encrypted: bool) -> list[str]:
    path = f"{PROJECT}:{_SOURCE_TOKENS}"
    text = pulumi.Config(PROJECT).get(_SOURCE_TOKENS)
    if text is None:
        return []
    tokens = _decoded(text)
    if not isinstance(tokens, dict) or not all(re.fullmatch(_HOST, host) and _is_credential(value) for host, value in tokens.items()):
        want = "a JSON map of host or host:port to a token or user:password"
        return [f"{path}: got another form, want {want}; run pulumi config set --secret {_SOURCE_TOKENS} with the map on its input"]
    if settings is None:
        return []
    problems: list[str] = []
    if encrypted and not _is_secret(_SOURCE_TOKENS):
        problems.append(_plain_text(_SOURCE_TOKENS))
    for index, model in enumerate(settings.models):
        scheme, (host, port) = urlsplit(model.source).scheme, model.origin or ("", 0)
        if scheme in ("http", "registry+http", "huggingface+http") and {host, f"{host}:{port}"} & tokens.keys():
            problems.append(
                f"{PROJECT}:models.{index}.source: got {scheme}:// and a credential for {host} in {_SOURCE_TOKENS}, "
                "want TLS, or everybody on the way could read it; use https://, registry:// or huggingface://, or remove the credential"
            )
    return problems


def _plain_text(name: str) -> str:
    return f"{PROJECT}:{name}: got plain text, want it encrypted with governance.production; set it with --secret"


def _is_credential(value: Any) -> bool:
    """Whether the value can be sent: a token goes into a header as it is, while user and password are encoded first."""
    return isinstance(value, str) and bool(re.fullmatch(r"[!-~]{1,16384}", value) or (":" in value and value.isprintable()))


def _decoded(text: str) -> Any:
    """The JSON value of `text`. Text that is not JSON is returned as it is; no section accepts a text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _configured_keys() -> list[str]:
    """Names of all keys of our project: an unknown section must be an error, and pulumi.Config cannot list."""
    names = json.loads(os.environ.get("PULUMI_CONFIG") or "{}") or runtime_config.CONFIG.get()
    return sorted(name.removeprefix(f"{PROJECT}:") for name in names if name.startswith(f"{PROJECT}:"))


def _is_secret(name: str) -> bool:
    key = f"{PROJECT}:{name}"
    return runtime_config.is_config_secret(key) or key in runtime_config.get_config_secret_keys_env()


def _must_be_encrypted(settings: Settings) -> bool:
    """Whether secrets in plain text are refused. A rendering has masked values in place of secrets, and no stack file of its own."""
    return settings.governance.production and settings.cluster.render_to is None


def _secret_problems(*, encrypted: bool) -> list[str]:
    config = pulumi.Config(PROJECT)
    problems: list[str] = []
    for name, want in _SECRETS.items():
        value = config.get(name)
        if value is None:
            problems.append(f"{PROJECT}:{name}: got nothing, want {want}")
        elif not _is_valid_secret(name, value):
            problems.append(f"{PROJECT}:{name}: got another form, want {want}")
        elif encrypted and not _is_secret(name):
            problems.append(_plain_text(name))
    return problems


def _is_valid_secret(name: str, value: str) -> bool:
    # What is wrong with keys is said one by one.
    return name == keys.SETTING or (len(value) >= 16 and value.isalnum() and value.isascii())
