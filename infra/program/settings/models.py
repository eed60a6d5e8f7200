"""Which models the fleet has, where each comes from, and how it is delivered."""

import ipaddress
import re
import ssl
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from infra.program.settings.section import Bytes, Cidr, ModelName, Section, Speed
from model_sync.files import HUBS, LIST
from model_sync.gguf import parts_of
from model_sync.proxy import Proxy

IMAGE = "image"
KEEP_ALIVE = r"^(-1|[0-9]{1,6}(ms|s|m|h))$"
_PORTS = {"registry": 443, "registry+http": 80, "huggingface": 443, "huggingface+http": 80, "https": 443, "http": 80}
_REGISTRY = "registry://host/namespace/model:tag"
_HUB = "huggingface://host/owner/name[/file.gguf]:commit"
_FORMS = f"image, {_REGISTRY}, {_HUB} (either with +http too), https://…, http://… or file:///…"


class ModelSettings(Section):
    name: ModelName
    """name:tag in the model store, and the model id of the API."""
    size: Bytes
    """Size of the weights, all files together, rounded up. Larger ones are refused."""
    format: Literal["gguf", "safetensors"] = "gguf"
    """Form of the model's files: one GGUF file or a split one; or a tree of safetensors."""
    kv_bytes_per_token: int = Field(ge=1, le=2**26)
    """Bytes of KV cache for one token: 2 x layers x KV heads x head dimension x bytes per element (2 for f16, Ollama's default).
    The numbers are in the model's GGUF metadata: block_count, attention.head_count_kv, attention.key_length."""
    source: str = IMAGE
    """Where the writer takes it from: `image` (the store in the models image), `registry://host/namespace/model:tag` (Ollama's and
    Docker's registry protocol; `registry+http://` without TLS), `huggingface://huggingface.co/owner/name:commit` (with `/file.gguf` after
    the name for a GGUF; `huggingface+http://` without TLS), a GGUF file at `https://…` or `http://…`, or one at `file:///…` in the
    writer's image. Where such an address ends in `/SHA256SUMS`, it is a list of the model's files, as `sha256sum` writes it."""
    digest: str = Field(default="", pattern=r"^(sha256:[0-9a-f]{64})?$")
    """sha256 of the manifest in a registry, of the file or the list elsewhere. Needed with every source but `image` and `huggingface://…`,
    whose commit says what is wanted."""
    context_length: int | None = Field(default=None, ge=512, le=1_048_576)
    """Tokens that a request to this model may have; fleet.contextLength when unset, and at most that."""
    embeds: bool = False
    """It makes embeddings or scores and does not chat: `fleet.minContext` is not asked of it."""
    quantization: str = Field(default="", pattern=r"^[A-Z0-9_]{0,20}$")
    """For example Q4_K_M: another one in the file is refused."""
    keep_alive: str | None = Field(default=None, pattern=KEEP_ALIVE)
    """How long the idle model stays loaded; fleet.keepAlive when unset."""
    replicas: int | None = Field(default=None, ge=0, le=500)
    """How many of the fleet's replicas hold it; all when unset, as it must be where the number of replicas changes by itself. 0 is none,
    for a model of model servers alone, as every split GGUF and every tree of safetensors is: Ollama loads neither."""
    speed: Speed | None = None
    """Measured speed of one of the fleet's replicas with it, for the turns a minute that preview, outputs and the page show."""

    @model_validator(mode="after")
    def _source_is_complete(self) -> Self:
        if self.source == IMAGE:
            return self
        if re.search(r"@|\?", self.source):
            # The source is not echoed: logs, the state and the Job would show the credential.
            raise ValueError("source: got a user, a password or a query, want the address alone; put the credential into sourceTokens")
        problem = _source_problem(self.source)
        if problem:
            raise ValueError(f"source: got {self.source!r}, want {problem}; correct it")
        if not self.digest and not self._is_of_a_hub:
            raise ValueError(f"digest: got nothing, want the sha256 of what {self.source} must deliver; ask who publishes it")
        return self

    @model_validator(mode="after")
    def _has_its_form(self) -> Self:
        if self.format == "safetensors" and self.quantization:
            raise ValueError(f"quantization: got {self.quantization} with format safetensors, want none; its own files say it, remove it")
        if self.format == "safetensors" and self._names_one_file:
            want = f"want {_HUB.replace('[/file.gguf]', '')}, {_REGISTRY}, or a list …/{LIST}"
            raise ValueError(f"source: got {self.source!r} with format safetensors, {want}; name all files of the tree")
        if self.format == "gguf" and self._is_of_a_hub and not self._names_one_file:
            raise ValueError(f"source: got {self.source!r}, want {_HUB} with the file (of a split one the first); name it")
        if self.replicas and not self._is_one_file:
            what = "safetensors" if self.format == "safetensors" else "a split GGUF"
            raise ValueError(f"replicas: got {self.replicas} with {what}, want 0: Ollama loads one GGUF file alone; leave it out")
        return self

    @property
    def in_fleet(self) -> bool:
        """Whether replicas of the fleet hold it; otherwise it is there for model servers alone."""
        return self._is_one_file and self.replicas != 0

    @property
    def _is_of_a_hub(self) -> bool:
        return urlsplit(self.source).scheme in HUBS

    @property
    def _names_one_file(self) -> bool:
        """Of a split GGUF, the first."""
        scheme = urlsplit(self.source).scheme
        if scheme in HUBS:
            return self.source.count("/") > 4
        return scheme in ("http", "https", "file") and not self.source.endswith(f"/{LIST}")

    @property
    def _is_one_file(self) -> bool:
        """As far as the source says. In a registry and an image the writer sees it."""
        parts = parts_of(self.source.rpartition(":")[0]) if self._is_of_a_hub else [self.source]
        return self.format == "gguf" and len(parts) == 1 and not self.source.endswith(f"/{LIST}")

    @property
    def origin(self) -> tuple[str, int] | None:
        """Host and port that the writer connects to, if it does."""
        parts = urlsplit(self.source)
        if parts.scheme not in _PORTS or parts.hostname is None:
            return None
        return parts.hostname, parts.port or _PORTS[parts.scheme]


class DeliverySettings(Section):
    rate_limit: Bytes | None = None
    """Bytes a second that the writer takes from its sources; unlimited when unset."""
    verify: bool = False
    """Hash also the files that are in the shared store already, and fetch damaged ones again."""
    networks: list[Cidr] = Field(default=[])
    """Networks of the sources that are named by host name (and of where they redirect to, or get tokens), and of the proxy, which takes the
    place of those behind it: a network policy knows addresses only."""
    ca_bundle: str = ""
    """Certificates (PEM) of authorities that the writer trusts beside the public ones."""
    proxy: str = ""
    """Forward proxy that leads to the sources, as `http://proxy.example.com:3128`. It is not asked for addresses, names without a dot, and
    names of the cluster (`.svc`, `.cluster.local`). Its credential, if it wants one, is the entry `proxy.example.com:3128` of the secret
    sourceTokens."""
    no_proxy: list[Annotated[str, Field(pattern=r"^\.?[a-z0-9]([a-z0-9.-]{0,250}[a-z0-9])?$")]] = Field(default=[])
    """Names of sources that are reached without the proxy, each with all names below it."""

    @model_validator(mode="after")
    def _proxy_is_an_address(self) -> Self:
        if "@" in self.proxy:
            # It is not echoed: logs, the state and the Job would show the credential.
            raise ValueError("proxy: got a user or a password, want http://HOST:PORT alone; put them into sourceTokens, under HOST:PORT")
        if self.proxy and not _is_proxy(self.proxy):
            raise ValueError(f"proxy: got {self.proxy!r}, want http://HOST:PORT; name a proxy that takes HTTP without TLS")
        if self.no_proxy and not self.proxy:
            raise ValueError(f"noProxy: got {', '.join(self.no_proxy)}, want none without proxy; remove it, or set proxy")
        return self

    @property
    def forward_proxy(self) -> Proxy | None:
        """The proxy, if there is one."""
        return Proxy(self.proxy, self.no_proxy) if self.proxy else None

    @model_validator(mode="after")
    def _authorities_are_certificates(self) -> Self:
        if problem := authorities_problem(self.ca_bundle):
            raise ValueError(f"caBundle: {problem}")
        return self


ALIAS = r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$"


class AliasSettings(Section):
    """Another name of a model. To point it elsewhere restarts nothing."""

    model: str = Field(pattern=ALIAS)
    """Id of a model: one of `models`, or a modelId of modelServers."""
    next: str | None = Field(default=None, pattern=ALIAS)
    """Id of the model that takes its place, and gets `share` of the conversations until then."""
    share: int = Field(default=0, ge=0, le=100)
    """Percent of the conversations that go to `next`; 0 takes all of them back. A conversation stays where it is."""

    @property
    def mostly(self) -> str:
        """Id of the model that most conversations get."""
        return self.next if self.next is not None and self.share > 50 else self.model

    @model_validator(mode="after")
    def _share_has_a_model(self) -> Self:
        if self.share and self.next is None:
            raise ValueError(f"share: got {self.share} without next, want the model that gets it; set next, or remove share")
        return self


def authorities_problem(bundle: str) -> str:
    """What is wrong with certificates of authorities; empty: nothing, also where there are none."""
    if "PRIVATE KEY" in bundle:
        return "got a private key, want certificates alone; remove it, and renew that key"
    try:
        if bundle:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=bundle)
    except (ssl.SSLError, ValueError, TypeError):
        return "got no certificates, want them as PEM; copy them with their BEGIN and END lines"
    return ""


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_proxy(text: str) -> bool:
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return False
    # An IPv6 address is in brackets, or urlsplit would have taken its end for a port.
    named = re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", host) or (is_address(host) and "%" not in host)
    return bool(port and named) and text.lower() in (f"http://{host}:{port}", f"http://[{host}]:{port}")


def _source_problem(source: str) -> str:
    """The form that the source should have; empty if it has it."""
    try:
        parts = urlsplit(source)
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError:
        return _FORMS
    if parts.scheme == "file":
        return "" if not parts.netloc and parts.path.startswith("/") and len(parts.path) > 1 else "file:///absolute/path"
    if parts.scheme not in _PORTS or not parts.hostname or not port_is_valid or re.search(r"\s", source):
        return _FORMS
    if parts.scheme.startswith("registry") and not re.fullmatch(r"/[a-z0-9][a-z0-9._/-]*:[A-Za-z0-9._-]{1,128}", parts.path):
        return f"{parts.scheme}://host/namespace/model:tag"
    if parts.scheme in HUBS and not re.fullmatch(r"/[\w.-]+/[\w.-]+(/[\w./-]+\.gguf)?:[0-9a-f]{40}", parts.path, re.ASCII):
        return f"{_HUB.replace('huggingface', parts.scheme)}, a commit of 40 digits, since a branch moves"
    return ""
