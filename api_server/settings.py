"""Settings from the environment."""

import functools
import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, Json, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,62}(\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*")
SERVER = r"([^/:\s\[\]]+|\[[0-9A-Fa-f:.]+\]):\d+"
"""HOST:PORT; an IPv6 address is in brackets."""
_LISTS = {
    "cors_origins": (re.compile(r"https?://[^/\s,*]+"), "origins such as https://ui.example"),
    "tls_names": (re.compile(r"[A-Za-z0-9]([A-Za-z0-9.:-]{0,251}[A-Za-z0-9])?|::1?"), "names of hosts such as models.example.com"),
    "session_headers": (re.compile(r"[A-Za-z0-9-_]{1,64}"), "names of headers such as x-my-session"),
}
"""Variables that are lists with commas: the form of a part, and how it is called."""


_SERVER_URL, _POOL_URL = re.compile(rf"http://{SERVER}"), re.compile(r"https?://[^/\s?#@]+(/[^\s?#]*[^\s?#/])?")
_METADATA = ("100.100.100.200", "168.63.129.16", "fd00:ec2::254")


class SettingsError(Exception):
    """Every wrong variable, one a line: `<variable>: got X, want Y; do Z`."""


class Environment(BaseSettings):
    """One field for each variable, which is the prefix and the field's name in capitals."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least of what it says of itself."""

    @classmethod
    def read(cls) -> Self:
        """Raises SettingsError."""
        prefix = cls.model_config.get("env_prefix", "")
        names = [f"{prefix}{name}".upper() for name in cls.model_fields]
        # The library takes what it knows, and a misspelt variable for somebody else's. Kubernetes' own are those of a Service of this name.
        own = tuple(f"{prefix}{name}_" for name in ("SERVICE", "PORT"))
        unknown = sorted(name for name in os.environ if name.startswith(prefix) and not name.startswith(own) and name not in names)
        lines = [f"{name}: got an unknown variable, want one of {', '.join(names)}; correct or remove it" for name in unknown]
        try:
            found = cls()
        except ValidationError as error:
            raise SettingsError("\n".join([*(_line(prefix, each) for each in error.errors(include_url=False)), *lines])) from None
        if lines:
            raise SettingsError("\n".join(lines))
        return found


def _line(prefix: str, error: Any) -> str:
    first, *rest = error["loc"]
    name = f"{prefix}{first}".upper()
    if error["type"] == "missing" and not rest:
        return f"{name}: got nothing, want a value; set the variable"
    # What stands before an @ may be a password.
    got = "a wrong value" if rest else repr(re.sub(r".*@", "…@", os.environ.get(name, "")))
    want = error["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"{name}{''.join(f'.{part}' for part in rest)}: got {got}, want {want}; correct the variable"


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def is_forbidden(address: str) -> bool:
    """Whether no pool can be at an address: what answers there belongs to the machine that asks, as a cloud's metadata does. Addresses
    outside of link-local ones: Alibaba's, Azure's and AWS's over IPv6, from their documentation."""
    found = ipaddress.ip_address(address.partition("%")[0])
    found = getattr(found, "ipv4_mapped", None) or found
    return found.is_link_local or found.is_multicast or found.is_unspecified or str(found) in _METADATA


class Route(BaseModel):
    """Where requests for one model id go."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pool: str = ""
    """Name of the pool of others that this is (pools.py), by which its key is found. Empty: servers of ours."""
    url: str
    """Base address, http://HOST:PORT; the host is resolved to all of its addresses. Of a pool: as OpenAI's clients take it, such as
    https://models.example.com/v1."""
    session_header: str = Field(default="", pattern=r"^[A-Za-z0-9_-]{0,64}$")
    """In which a pool is told the conversation. Empty: it is not."""
    ca: str = ""
    """Certificates (PEM) of authorities that a pool's certificate may be of, beside the public ones."""
    model: str = ""
    """Name that is sent upstream; the model id when empty."""
    max_in_flight: int = Field(default=4, ge=1, le=10_000)
    """Requests at once to one address."""
    engine: Literal["openai", "ollama"] = "openai"
    """What answers there. Ollama also has its own API, and cuts prompts that are too long, so those are refused here."""
    context_length: int = Field(default=0, ge=0)
    """Tokens that an Ollama server holds for one request; a server of the other kind refuses longer ones itself."""
    slots: int = Field(default=0, ge=0)
    """Conversations that one address keeps in any case. 0: not known, and new ones never wait for the memory of others."""
    cached_tokens: int = Field(default=0, ge=0)
    """Tokens of conversations that one address keeps in its cache, where a conversation needs room before it takes a slot."""
    turns_per_hour: int | None = Field(default=None, ge=0)
    """Of warm conversations, that one address answers at most. None: its speed was not measured."""
    digest: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    """SHA-256 of the model's manifest; a server that has another one under the same name is not asked. Empty: any."""

    @field_validator("url")
    @classmethod
    def _resolvable(cls, url: str, info: ValidationInfo) -> str:
        pool = bool(info.data.get("pool"))
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port or (443 if pool else None)
        except ValueError:
            host, port = "", None
        form, want = (_POOL_URL, "http(s)://HOST[:PORT][/PATH]") if pool else (_SERVER_URL, "http://HOST:PORT")
        if not form.fullmatch(url) or not port or not (":" in host or _HOST.fullmatch(host)):
            raise ValueError(f"{want} with an address or a name that DNS can have, and a port below 65536")
        if pool and is_address(host) and is_forbidden(host):
            raise ValueError("an address of somebody else, and none that serves the machine itself")
        return url

    @model_validator(mode="after")
    def _ollama_has_a_context(self) -> Self:
        if self.engine == "ollama" and not self.context_length:
            raise ValueError("context_length above 0 with engine ollama")
        return self


class Settings(Environment):
    """Variables `API_SERVER_…`."""

    model_config = SettingsConfigDict(env_prefix="API_SERVER_")

    host: str = ""
    """Where it listens; empty is every address, of each family that the kernel has."""
    port: int = Field(default=8000, ge=0, le=65535)
    metrics_port: int = Field(default=9464, ge=0, le=65535)
    keys_file: Path
    """JSON: name to `{"hash", "owner", "expires", "models", "requestsPerMinute", "tokensPerMinute", "concurrency", "priority"}`, the hash
    being the key's BLAKE2b of 256 bits; read again when it changes. The old form, one key a line, is read too."""
    routes: Json[Annotated[dict[str, Route], Field(min_length=1)]]
    pool_keys_file: Path | None = None
    """JSON: name of a pool to its key; read again when it changes. None: no pool asks for one."""
    aliases_file: Path | None = None
    """JSON: name to `{"model", "next", "share"}`; read again when it changes. None: no model has another name."""
    tls_dir: Path | None = None
    """Directory with `tls.crt` and `tls.key` in PEM, as a Secret of the type kubernetes.io/tls is mounted; read again when they change.
    None: HTTP without TLS."""
    tls_names: Annotated[tuple[str, ...], NoDecode] = ()
    """Names and addresses, separated by commas, that the certificate must be valid for."""
    request_timeout_s: float = Field(default=900, gt=0)
    """Longest silence of an upstream: agents wait for long answers without a stream."""
    max_body_bytes: int = Field(default=32 * 2**20, ge=1024)
    memory_bytes: int = Field(default=0, ge=0)
    """Memory that the process may use: it bounds what all requests in flight take. 0: what its control group allows."""
    max_connections: int = Field(default=0, ge=0)
    """Connections at once, of which one key may use half; 0: as many as the memory has room for."""
    head_s: float = Field(default=30, gt=0)
    """Longest time from a connection, or from the first byte of a later request on it, to the end of a request's head."""
    body_s: float = Field(default=30, gt=0)
    """Longest pause within a request's body. The whole of it may take twice as long, and a second more for every 32 KiB."""
    silence_s: float = Field(default=14, gt=0)
    """Longest silence of a stream to a client; then it gets a sign of life. Proxies give up after 60 s, some after 15."""
    server_silence_s: float = Field(default=90, gt=0)
    """A server whose streams have begun, and that says nothing more to anybody for so long, gets no requests for a while."""
    cache_url: str = Field(default="", pattern=r"^(redis://.*)?$")
    """The cache server, over which API servers agree on limits, places and conversations; empty: each keeps to its share."""
    cache_password_file: Path | None = None
    gateways: int = Field(default=1, ge=1, le=1000)
    """API servers that there are, as far as nobody has counted them."""
    cors_origins: Annotated[frozenset[str], NoDecode] = frozenset()
    """Origins, separated by commas, whose pages may use the API from a browser, as https://ui.example; empty: none."""
    session_headers: Annotated[tuple[str, ...], NoDecode] = ()
    """Names of headers, separated by commas, that say which conversation a request belongs to, before those that are known."""
    hold_s: float = Field(default=0, ge=0)
    """Longest wait of a request for a model that no server has; 0 refuses at once."""
    queue_s: float = Field(default=0, ge=0)
    """Longest wait of a request for a place at servers that are busy; 0 refuses at once."""
    max_waiting: int = Field(default=64, ge=1)
    """Requests of one model that wait for either; more get 429."""
    drain_s: float = Field(default=120, ge=0)
    """Longest wait for requests in flight at the end."""
    drain_delay_s: float = Field(default=2, ge=0)
    """Between going unready and refusing connections: what the endpoints' propagation takes."""

    @functools.cached_property
    def cache_password(self) -> str:
        """Empty: none. Read once. Raises SettingsError."""
        if self.cache_password_file is None:
            return ""
        try:
            return self.cache_password_file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            path, why = self.cache_password_file, getattr(error, "strerror", None) or "no UTF-8"
            raise SettingsError(
                f"API_SERVER_CACHE_PASSWORD_FILE: got {why} for {path}, want a readable file; mount the Secret there"
            ) from None

    @field_validator(*_LISTS, mode="before")
    @classmethod
    def _listed(cls, value: object, info: ValidationInfo) -> object:
        form, want = _LISTS[info.field_name or ""]
        parts = [part for each in value.split(",") if (part := each.strip())] if isinstance(value, str) else value
        if isinstance(parts, list) and not all(form.fullmatch(str(each)) for each in parts):
            raise ValueError(f"{want}, separated by commas")
        return parts

    @field_validator("tls_names")
    @classmethod
    def _only_with_tls(cls, names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if names and info.data.get("tls_dir") is None:
            raise ValueError("none without API_SERVER_TLS_DIR, or keys would come in plain text")
        return names

    @field_validator("session_headers")
    @classmethod
    def _in_small_letters(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name.lower() for name in names)
