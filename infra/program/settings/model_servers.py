"""The section `modelServers`: servers of one model each, beside the fleet."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from components.contract import MODEL_SERVER, model_server
from infra.program.settings.fleet import ScaleSettings
from infra.program.settings.section import PROJECT, Bytes, ModelName, Resources, Section, SettingsError, Speed
from infra.program.settings.workloads import WorkloadSettings

SECTION, OLD = "modelServers", "modelServer"
ServerName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")]
"""A DNS label, so short that `model-server-NAME-metrics` is one too."""


class LlamaCppSettings(Section):
    """llama.cpp on GPUs: the image `model-server` has its build for CPUs alone."""

    image: str = Field(pattern=r"^[^\s@]+@sha256:[0-9a-f]{64}$")
    """Image with our server and llama.cpp's own `llama-server` with CUDA, by digest; docs/engines.md has its Dockerfile."""
    program: str = Field(default="/usr/local/bin/llama-server", pattern=r"^/[A-Za-z0-9._/-]{1,200}$")
    """Where `llama-server` is in it."""


class VllmSettings(Section):
    """What vLLM alone is told. Its command line is in model_server/vllm.py."""

    memory_utilization: float = Field(default=0.9, ge=0.1, le=0.98)
    """Part of each GPU's memory that vLLM takes: weights, activations and CUDA graphs come first, and its KV cache gets the rest."""
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    """Of the KV cache: that of the model, or fp8, in which it holds twice as many tokens."""
    dtype: Literal["auto", "bfloat16", "float16"] = "auto"
    """Of the computation; auto is that of the weights."""
    quantization: str = Field(default="", pattern=r"^[a-z0-9_-]{0,40}$")
    """How weights are quantized that do not say it themselves, as vLLM calls it: `fp8` makes them smaller while they are loaded."""
    tool_call_parser: str = Field(default="", pattern=r"^[a-z0-9_.-]{0,40}$")
    """How calls of tools are read, as vLLM calls it, such as `qwen3_coder` or `hermes`; empty: the model has no tools."""
    reasoning_parser: str = Field(default="", pattern=r"^[a-z0-9_.-]{0,40}$")
    """How thoughts are read, as vLLM calls it, such as `qwen3`; empty: they are a part of the text."""
    eager: bool = False
    """No CUDA graphs: less memory and a sooner start, and slower answers."""


class ModelServerSettings(Section):
    name: ServerName
    """Names its objects, `model-server-NAME`. The one that is called `model-server` has that name alone, as the first release's had."""
    replicas: int = Field(default=1, ge=1, le=16)
    """Processes of this server, one a pod; with `scale`, the most that there may be."""
    scale: ScaleSettings | None = None
    """The activator scales between `min` and `replicas` by what conversations and requests need, as `fleet.scale` does it."""
    engine: Literal["llama-cpp", "vllm"] = "llama-cpp"
    """What generates: llama.cpp, for GGUF on CPUs and small GPUs, or vLLM, for safetensors on GPUs."""
    gpus: int = Field(default=0, ge=0, le=8)
    """GPUs of each server, as gpu.sharing has them; at most one where they are shared or partitioned. vLLM splits every layer over all of
    them (tensor parallel), llama.cpp gives each some of the layers."""
    model: ModelName
    """A model of the store."""
    model_id: str = Field(pattern=r"^[A-Za-z0-9._:/-]{1,100}$")
    """The id that clients use for it; differs from the fleet's ids, and from those of other model servers."""
    context_length: int = Field(default=4096, ge=512, le=1_048_576)
    """Tokens per request; longer ones are refused."""
    parallel: int = Field(default=2, ge=1, le=64)
    """Requests that are generated at once."""
    max_queue: int = Field(default=16, ge=0, le=512)
    """Requests that may wait; more get 503."""
    prompt_cache: Bytes | None = None
    """Memory that each server may keep old prompts in: the next turn of such a conversation reads only what is new. Unset, as much as its
    slots hold, where resources.memory has room for it. vLLM has them in its KV cache first; unset, there alone."""
    speed: Speed | None = None
    """Measured speed of one replica, for the turns a minute that preview, outputs and the page show."""
    resources: Resources
    local_size: Bytes | None = None
    """Size of the node-local claim that each replica keeps its copy of the model in; storage.hot.size when unset."""
    placement: WorkloadSettings | None = None
    """Nodes, taints, zones and account of its pods; unset, those of workloads.model-server."""
    llama_cpp: LlamaCppSettings | None = None
    """Of engine llama-cpp on GPUs alone."""
    vllm: VllmSettings | None = None
    """Of engine vllm alone."""

    @model_validator(mode="after")
    def _engine_can_do_it(self) -> Self:
        problems: list[str] = []
        if self.engine == "vllm":
            if not self.gpus:
                problems.append("gpus: got 0 with engine vllm, want one at least; set it, or use llama-cpp, which runs on CPUs too")
        elif self.vllm is not None:
            problems.append(f"vllm: got a section with engine {self.engine}, want it with engine vllm; remove it, or set engine")
        elif self.gpus and self.llama_cpp is None:
            want = "want llamaCpp.image, since the image model-server has llama.cpp for CPUs alone"
            problems.append(f"gpus: got {self.gpus} with engine llama-cpp, {want}; set it, or use vllm")
        if self.llama_cpp is not None and (self.engine == "vllm" or not self.gpus):
            got = f"got a section with engine {self.engine} and {self.gpus} GPUs"
            problems.append(f"llamaCpp: {got}, want it with llama-cpp on GPUs; remove it")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def of_vllm(self) -> VllmSettings:
        """What vLLM is told, where it is the engine."""
        return self.vllm or VllmSettings()

    @property
    def keeps_copies(self) -> bool:
        """Whether the volume of a replica that was scaled away stays."""
        return self.scale is None or self.scale.keep_copies

    @property
    def component(self) -> str:
        """What its objects and its pods are called."""
        return model_server(self.name)


def is_old(document: Mapping[str, Any]) -> bool:
    """Whether the configuration has the one model server of the first release."""
    return OLD in document


def in_a_list(document: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with the setting of the first release in today's form. Raises SettingsError when it has both."""
    if not is_old(document):
        return dict(document)
    # An empty list is what Pulumi makes of no list.
    if document.get(SECTION):
        raise SettingsError(f"{PROJECT}:{OLD}: got it beside {SECTION}, want that alone; make it an item there, with name: {MODEL_SERVER}")
    found = document[OLD]
    if isinstance(found, Mapping) and "name" in found:
        raise SettingsError(f"{PROJECT}:{OLD}.name: got a name, want it in {SECTION} alone; make all of {OLD} an item there")
    named = {"name": MODEL_SERVER, **found} if isinstance(found, Mapping) else found
    return {**{key: value for key, value in document.items() if key != OLD}, SECTION: [named]}


def as_written(line: str) -> str:
    """What is wrong with a configuration of the old form, by the names that stand in it."""
    return line.replace(f"{SECTION}.0", OLD)


def old_form() -> str:
    """What is said of a configuration with the setting of the first release."""
    want = f"want {SECTION}, a list; until then it is the one item, with name: {MODEL_SERVER} (docs/configuration.md)"
    return f"{PROJECT}:{OLD}: got the old form, {want}"
