"""The few questions that the agent asks Ollama, over loopback."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import aiohttp

from ollama_agent.catalog import Model, bare

_TIMEOUT_S = 5
"""Listings answer in milliseconds, also while a model is being loaded."""
_NOT_GENERATIVE = "does not support generate"


class OllamaError(Exception):
    """The server did not do what was asked; the message is its own word."""


class ConnectionLostError(OllamaError):
    """It did not answer: there is no connection, or it ended before the answer."""


@dataclass(frozen=True)
class Loaded:
    """A model in memory, as /api/ps tells it."""

    name: str
    digest: str
    bytes: int
    vram_bytes: int
    context_length: int
    """Tokens that it was loaded for: what the server allocated."""
    expires: datetime | None

    @property
    def off_gpu(self) -> int:
        """Bytes that are not in GPU memory. A model with all its layers there has 0: Ollama counts nothing else then
        (llm/llama_server.go of 0.32.15, MemorySize)."""
        return max(self.bytes - self.vram_bytes, 0)

    @property
    def expired(self) -> bool:
        return self.expires is not None and self.expires <= datetime.now(UTC)


def _loaded(entry: dict[str, Any]) -> Loaded:
    try:
        expires = datetime.fromisoformat(entry.get("expires_at", ""))
    except ValueError:
        expires = None
    return Loaded(
        name=entry["name"],
        digest=bare(entry.get("digest", "")),
        bytes=int(entry.get("size", 0)),
        vram_bytes=int(entry.get("size_vram", 0)),
        context_length=int(entry.get("context_length", 0)),
        expires=expires,
    )


class Ollama:
    """One server. Every method raises OllamaError."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url = url
        self._session = session

    async def available(self) -> dict[str, str]:
        """Model name to digest of everything in the store."""
        found = await self._call("GET", "/api/tags", None, _TIMEOUT_S)
        return {entry["name"]: bare(entry.get("digest", "")) for entry in found.get("models") or []}

    async def loaded(self) -> dict[str, Loaded]:
        found = await self._call("GET", "/api/ps", None, _TIMEOUT_S)
        return {entry["name"]: _loaded(entry) for entry in found.get("models") or []}

    async def load(self, model: Model, timeout_s: float) -> None:
        """Returns when the model is in memory. A request without a prompt loads and generates nothing."""
        body: dict[str, Any] = {"model": model.name, "keep_alive": model.keep_alive_value}
        try:
            await self._call("POST", "/api/generate", body | {"stream": False}, timeout_s)
        except OllamaError as error:
            if _NOT_GENERATIVE not in str(error):
                raise
            await self._call("POST", "/api/embed", body | {"input": []}, timeout_s)

    async def _call(self, method: str, path: str, body: dict[str, Any] | None, timeout_s: float) -> dict[str, Any]:
        try:
            timeout = aiohttp.ClientTimeout(total=timeout_s)
            async with self._session.request(method, f"{self._url}{path}", json=body, timeout=timeout) as response:
                answer = await response.json(content_type=None)
        except TimeoutError:
            raise OllamaError(f"{path}: nothing for {timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise ConnectionLostError(f"{path}: {type(error).__name__}") from None
        except (ValueError, RecursionError) as error:
            raise OllamaError(f"{path}: {type(error).__name__}") from None
        if not isinstance(answer, dict) or response.status != 200:
            said = answer.get("error", "") if isinstance(answer, dict) else ""
            raise OllamaError(f"{path}: {response.status} {said}".rstrip())
        return answer
