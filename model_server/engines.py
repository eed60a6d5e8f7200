"""The engines: llama.cpp, for CPUs and for GGUF files, and vLLM, for GPUs and safetensors."""

import json
import math
import re
import sys
from collections.abc import Mapping
from http import HTTPStatus
from importlib import metadata
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from model_server.endpoints import BY_PATH, OF_VLLM
from model_server.engine import ASKED, Engine
from model_server.errors import ApiError, refusal, too_long, unsupported
from model_server.kept import Kept, identity
from model_server.pooling import RANK, pooling
from model_server.saved import Tokens
from model_server.settings import Settings
from model_server.store import find_gguf, find_tree
from model_server.vllm import VERSION

_THOUGHTS = ("<think>", "enable_thinking", "reasoning_content", "reasoning_effort")
"""One of them stands in the chat template of every model that thinks."""
_TOKEN: tuple[str, Mapping[str, Any]] = "/v1/completions", {"prompt": "a", "max_tokens": 1, "temperature": 0}
_EMBEDDING: tuple[str, Mapping[str, Any]] = "/v1/embeddings", {"input": "a"}


class LlamaCpp(Engine):
    """llama.cpp's own server: the binary `llama-server`, which images for GPUs carry, or the build for CPUs in the package xllamacpp."""

    module = "model_server.llama_cpp"
    endpoints = BY_PATH

    def __init__(self, weights: Path, settings: Settings, digest: str = "") -> None:
        self._digest = digest
        self.kept = Kept(settings.kept_dir, settings.kept_mib * 2**20, settings.kept_s) if settings.kept_dir else None
        super().__init__(
            {
                "binary": str(settings.llama_server or ""),
                "model": str(weights),
                "pooling": pooling(weights),
                "alias": settings.served_id,
                # Each slot gets an equal share of what the engine is given.
                "context": settings.context_length * settings.parallel,
                "parallel": settings.parallel,
                "prompt_cache_mib": settings.prompt_cache_mib,
                "threads": settings.threads,
                "slots_dir": f"{self.kept.directory}/" if self.kept else "",
            },
            settings.context_length,
        )

    async def arrived(self, session: aiohttp.ClientSession, url: str) -> None:
        if self.kept is not None and not self.parameters["pooling"]:
            self.restored_tokens = await self.kept.restore(session, url, identity(self._digest, self.version, self.parameters))

    async def leave(self) -> None:
        if self.kept is not None and self._session is not None and self.ready and not self.parameters["pooling"]:
            await self.kept.save(self._session, self._url, identity(self._digest, self.version, self.parameters))

    async def returned(self) -> int:
        return await self.kept.returned(self._session, self._url) if self.kept is not None and self._session is not None else 0

    async def _ask(self, session: aiohttp.ClientSession, url: str) -> frozenset[str]:
        async with session.get(f"{url}/props", timeout=ASKED) as response:
            properties = await response.json()
        # The package's build does not know its number.
        build = properties["build_info"] if self.parameters["binary"] else f"xllamacpp {metadata.version('xllamacpp')}"
        self.version = f"llama.cpp {build}"
        return _abilities(properties)

    async def _has(self, session: aiohttp.ClientSession, url: str) -> int:
        """Of one slot: it cuts slots to what the model was made for."""
        async with session.get(f"{url}/props", timeout=ASKED) as response:
            return int((await response.json())["default_generation_settings"]["n_ctx"])

    def _question(self) -> tuple[str, Mapping[str, Any]]:
        if self.parameters["pooling"] == RANK:
            return "/v1/rerank", {"query": "a", "documents": ["a"]}
        return _EMBEDDING if self.parameters["pooling"] else _TOKEN

    async def _works(self, session: aiohttp.ClientSession, url: str, left_s: float) -> bool:
        """It is asked for its slots, because that question, unlike the one for its health, goes through the loop that generates
        (llama.cpp, tools/server/server-context.cpp)."""
        async with session.get(f"{url}/slots", timeout=aiohttp.ClientTimeout(total=left_s)) as response:
            await response.read()
        return True

    def refusal(self, status: int, body: bytes) -> ApiError:
        return refusal(status, body)


def _abilities(properties: Mapping[str, Any]) -> frozenset[str]:
    """From an answer of llama.cpp's /props. Source: tools/server/server-context.cpp, as packaged in xllamacpp 2026.10."""
    template: str = properties["chat_template"]
    found = {"completion"} | {name for name, here in properties["modalities"].items() if here}
    if properties["chat_template_caps"]["supports_tools"]:
        found.add("tools")
    if any(word in template for word in _THOUGHTS):
        found.add("thinking")
    return frozenset(found)


_TOO_LONG = re.compile(
    r"maximum context length is (\d+) tokens\. However, .*?your prompt contains (?:at least )?(\d+ (?:input tokens|characters))"
)
_TOO_LONG_RESPONSES = re.compile(r"prompt length (\d+) exceeds the max_model_len (\d+)")
"""vllm/renderers/params.py, and of /v1/responses vllm/entrypoints/openai/responses/serving.py, 0.32.0."""


_BY_SOURCE = "vllm:prompt_tokens_cached_by_source_total"
"""Sources: `device`, `host`, `disk`."""
_PREFILL_S = "vllm:request_prefill_time_seconds"


class Vllm(Engine):
    """vLLM's own OpenAI server."""

    module = "model_server.vllm"
    version = f"vllm {VERSION}"
    endpoints = OF_VLLM
    apart_by = "cache_salt"
    counts = True

    def __init__(self, weights: Path, settings: Settings) -> None:
        self._parsers = {"tools": settings.tool_call_parser, "thinking": settings.reasoning_parser}
        self.manner = " ".join((_computes(settings), *self._parsers.values()))
        self._steps = -1.0
        self._writes = True
        super().__init__(
            {
                "python": str(settings.vllm_python or sys.executable),
                "home": str(settings.vllm_cache_dir),
                "model": str(weights),
                "alias": settings.served_id,
                "context": settings.context_length,
                "parallel": settings.parallel,
                "tensor_parallel": settings.tensor_parallel,
                "gpu_memory_utilization": settings.gpu_memory_utilization,
                "dtype": settings.dtype,
                "quantization": settings.quantization,
                "kv_cache_dtype": settings.kv_cache_dtype,
                "tool_call_parser": settings.tool_call_parser,
                "reasoning_parser": settings.reasoning_parser,
                "enforce_eager": settings.enforce_eager,
                "offload_mib": settings.offload_mib,
                "tier_dir": str(settings.tier_dir or ""),
            },
            settings.context_length,
        )

    async def _ask(self, session: aiohttp.ClientSession, url: str) -> frozenset[str]:
        """vLLM has the paths of what the model can do; how its tools and thoughts are read, only the settings know."""
        async with session.get(f"{url}/openapi.json", timeout=ASKED) as response:
            paths: Mapping[str, Any] = (await response.json())["paths"]
        self._writes = "/v1/completions" in paths
        if "/v1/chat/completions" not in paths:
            return frozenset({"completion"} if "/v1/completions" in paths else ())
        return frozenset({"completion", *(name for name, parser in self._parsers.items() if parser)})

    async def _has(self, session: aiohttp.ClientSession, url: str) -> int:
        async with session.get(f"{url}/v1/models", timeout=ASKED) as response:
            return int((await response.json())["data"][0]["max_model_len"])

    def _question(self) -> tuple[str, Mapping[str, Any]]:
        return _TOKEN if self._writes else _EMBEDDING

    async def _works(self, session: aiohttp.ClientSession, url: str, left_s: float) -> bool:
        """Nothing that it answers goes through the loop that generates. But while it has requests, the loop counts its steps."""
        found = await _numbers(session, url, left_s)
        before, self._steps = self._steps, found.get("vllm:iteration_tokens_total_count", 0.0)
        return self._steps != before or (not found.get("vllm:num_requests_running") and not found.get("vllm:num_requests_waiting"))

    async def tokens(self) -> Tokens | None:
        if self._session is None or not self.ready:
            return None
        found = await _numbers(self._session, self._url, ASKED.total or 0.0)
        prompt, written = (int(found[f"vllm:{name}_tokens_total"]) for name in ("prompt", "generation"))
        reused = min(int(found.get("vllm:prompt_tokens_cached_total", 0)), prompt)
        host, disk = (int(found.get(f"{_BY_SOURCE} {source}", 0)) for source in ("host", "disk"))
        reads = int(found.get(f"{_PREFILL_S}_count", 0))
        timed = int(found.get("vllm:request_prefill_kv_computed_tokens_sum", 0))
        return Tokens(prompt - reused, reused, written, host, disk, reads, timed, found.get(f"{_PREFILL_S}_sum", 0.0))

    def refusal(self, status: int, body: bytes) -> ApiError:
        """A prompt that is too long in the sentences that agents know; everything else in vLLM's words."""
        if status == HTTPStatus.NOT_FOUND:
            # It has no path for what the model cannot do.
            return unsupported()
        try:
            said = str(json.loads(body)["error"]["message"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return refusal(status, body)
        if found := _TOO_LONG.search(said):
            return too_long(found[2].replace("input ", ""), found[1])
        if found := _TOO_LONG_RESPONSES.search(said):
            return too_long(f"{found[1]} tokens", found[2])
        return refusal(status, body)


async def _numbers(session: aiohttp.ClientSession, url: str, limit_s: float) -> dict[str, float]:
    """vLLM's metrics, summed over their labels, but for the tier that had the tokens of a prompt. Source: vllm/v1/metrics/loggers.py and
    cache_hit_source.py, 0.32.0."""
    async with session.get(f"{url}/metrics", timeout=aiohttp.ClientTimeout(total=limit_s)) as response:
        text = await response.text()
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = f"{_BY_SOURCE} {sample.labels.get('source')}" if sample.name == _BY_SOURCE else sample.name
            if math.isfinite(sample.value):
                found[name] = found.get(name, 0.0) + sample.value
    return found


def _computes(settings: Settings) -> str:
    """How vLLM computes: what it holds of a prompt is other numbers with any other."""
    return f"{settings.dtype} {settings.quantization} {settings.kv_cache_dtype}"


def engine_of(settings: Settings) -> tuple[Engine, str]:
    """The engine with its weights, and the digest that identifies them. Raises StoreError."""
    if settings.engine == "vllm":
        weights, digest = find_tree(settings.models_dir, settings.model, settings.weights_dir, f"{Vllm.version} {_computes(settings)}")
        return Vllm(weights, settings), digest
    weights, digest = find_gguf(settings.models_dir, settings.model, settings.weights_dir)
    return LlamaCpp(weights, settings, digest), digest
