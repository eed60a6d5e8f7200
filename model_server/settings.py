"""Settings from the environment."""

import os
import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict


class SettingsError(Exception):
    """Every wrong variable, one a line: `<variable>: got X, want Y; do Z`."""


class Environment(BaseSettings):
    """One field for each variable, which is the prefix and the field's name in capitals."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, protected_namespaces=())

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


class Settings(Environment):
    """Variables `MODEL_SERVER_…`."""

    model_config = SettingsConfigDict(env_prefix="MODEL_SERVER_")

    engine: Literal["llama-cpp", "vllm"] = "llama-cpp"
    """llama.cpp runs GGUF files on CPUs and small GPUs; vLLM runs safetensors on GPUs."""
    host: str = ""
    """Where it listens; empty is every address, of each family that the kernel has."""
    port: int = Field(default=8080, ge=0, le=65535)
    models_dir: Path = Path("/models")
    """A model store as Ollama lays it out; read only."""
    model: str = Field(pattern=r"^[^\s:]+:[^\s:]+$")
    """`[host/][namespace/]model:tag` in the store."""
    model_id: str = ""
    """The id that requests name; `model` when empty."""
    context_length: int = Field(default=4096, ge=512)
    """Tokens of one request, prompt and answer together."""
    parallel: int = Field(default=2, ge=1, le=1024)
    """Requests that are generated at once."""
    max_queue: int = Field(default=16, ge=0)
    """Requests that may wait; more are refused with 503."""
    prompt_cache_mib: int = Field(default=256, ge=0)
    """Host memory, in MiB, for prompts whose slots went to others."""
    kept_dir: Path | None = None
    """Where llama.cpp's conversations are kept from one process to the next one: a directory of this server alone, on a disk of its node.
    None: nowhere."""
    kept_mib: int = Field(default=0, ge=0)
    """What they may take there, in MiB."""
    kept_s: float = Field(default=20, gt=0)
    """Time for writing all of them when the server has drained, and for reading them before it is ready."""
    threads: int = Field(default=0, ge=0)
    """CPU threads of the engine; 0 means one a core."""
    llama_server: Path | None = None
    """llama.cpp's own server, which images with CUDA carry: the whole model goes on the GPU, or the engine fails. None means the build for
    CPUs that is installed with this server."""
    vllm_python: Path | None = None
    """A Python that has vLLM, whose packages are of other versions than ours; None means this one."""
    weights_dir: Path = Path("/tmp/weights")  # noqa: S108 (a directory of the pod)
    """Where an engine finds the files of a model by their names, where there are several: links into the store."""
    vllm_cache_dir: Path = Path("/tmp/vllm")  # noqa: S108
    """Where vLLM keeps what it has compiled."""
    tensor_parallel: int = Field(default=1, ge=1, le=8)
    """GPUs that vLLM splits every layer over."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Part of each GPU's memory that vLLM may use."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Of vLLM's computation; auto is that of the weights."""
    quantization: str = Field(default="", pattern=r"^[a-z0-9_-]{0,40}$")
    """How the weights are quantized, as vLLM calls it; empty: as they say themselves."""
    kv_cache_dtype: str = Field(default="auto", pattern=r"^[a-z0-9_]{1,40}$")
    """Of vLLM's KV cache; fp8 holds twice as many tokens."""
    tool_call_parser: str = Field(default="", pattern=r"^[a-z0-9_.-]{0,40}$")
    """How vLLM reads calls of tools; empty: it does not."""
    reasoning_parser: str = Field(default="", pattern=r"^[a-z0-9_.-]{0,40}$")
    """How vLLM reads thoughts; empty: they are a part of the text."""
    enforce_eager: bool = False
    """No CUDA graphs: less memory, slower."""
    offload_mib: int = Field(default=0, ge=0)
    """Host memory, in MiB and of all GPUs together, that vLLM keeps old prompts in; 0: none."""
    tier_dir: Path | None = None
    """Where vLLM keeps what has left that memory, as a keeper allows it (model_server/tier). None: nowhere."""
    keeper_file: Path | None = None
    """Where that keeper says how it is."""
    engine_silence_s: float = Field(default=300, gt=0)
    """An engine that answers no question for so long hangs, and the process ends. While it reads one piece of a prompt, 2048 tokens, it
    answers none: minutes for a large model on a slow CPU."""
    last_words_file: Path | None = None
    """Where it is said why the engine ended: a kubelet reads it there. None means nowhere but in the log."""
    cache_url: str = Field(default="", pattern=r"^(rediss?://.*)?$")
    """Where exact answers are kept; empty means nowhere."""
    cache_password_file: Path | None = None
    max_connections: int = Field(default=1024, ge=8)
    """Connections at once. API servers need one for each request, and the kubelet one for each probe."""
    head_s: float = Field(default=30, gt=0)
    """Longest time from a connection, or from the first byte of a later request on it, to the end of a request's head."""
    body_s: float = Field(default=60, gt=0)
    """Longest time for a request's body."""
    drain_s: float = Field(default=120, ge=0)
    drain_delay_s: float = Field(default=2, ge=0)

    @property
    def served_id(self) -> str:
        return self.model_id or self.model
