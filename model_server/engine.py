"""The seam between serving and generating, and the adapter that generates with llama.cpp."""

import asyncio
import contextlib
import json
import logging
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol

import aiohttp

from model_server.pooling import pooling

log = logging.getLogger("model_server")
_ASK_S = 5.0
"""Between two questions whether the engine still works."""
_LOADED_S = 0.1
"""Between two questions whether the model is loaded."""


class EngineError(Exception):
    """The engine cannot start or has ended."""


class Answer(Protocol):
    """An engine's HTTP answer, possibly a stream of server-sent events."""

    status: int

    async def read(self) -> bytes: ...

    def chunks(self) -> AsyncIterator[bytes]: ...


class Engine(Protocol):
    """What the server needs of an engine. Cancelling a `request` block must free whatever the request holds."""

    @property
    def ready(self) -> bool: ...

    @property
    def failed(self) -> bool: ...

    @property
    def abilities(self) -> frozenset[str]:
        """What the loaded model can do: `completion`, `tools`, `thinking`, `vision`, `audio`. Empty while it is not known."""
        ...

    async def start(self) -> None:
        """Load the model. Raises EngineError."""
        ...

    async def stop(self) -> None: ...

    def request(self, path: str, payload: Mapping[str, Any]) -> Any:
        """An async context manager that yields an Answer to a request to one of `endpoints.BY_PATH`."""
        ...


class _HttpAnswer:
    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.status = response.status
        self._response = response

    async def read(self) -> bytes:
        return await self._response.read()

    def chunks(self) -> AsyncIterator[bytes]:
        return self._response.content.iter_any()


class LlamaCppEngine:
    """llama.cpp's own server in a child process on a loopback port: the binary `llama-server`, which images for GPUs carry, or the build
    for CPUs in the package xllamacpp.

    A process of its own: loading holds no lock of ours, a crash in native code is seen and reported, and closing the
    connection of a request ends its generation.
    """

    def __init__(
        self,
        weights: Path,
        *,
        model_id: str,
        context_length: int,
        parallel: int,
        prompt_cache_mib: int,
        threads: int,
        binary: Path | None = None,
    ) -> None:
        self._parameters = {
            "binary": str(binary or ""),
            "model": str(weights),
            "pooling": pooling(weights),
            "alias": model_id,
            # Each slot gets an equal share of what the engine is given.
            "context": context_length * parallel,
            "parallel": parallel,
            "prompt_cache_mib": prompt_cache_mib,
            "threads": threads,
        }
        self._process: asyncio.subprocess.Process | None = None
        self._session: aiohttp.ClientSession | None = None
        self._url = ""
        self._abilities: frozenset[str] = frozenset()

    @property
    def abilities(self) -> frozenset[str]:
        return self._abilities

    @property
    def ready(self) -> bool:
        return bool(self._url) and not self.failed

    @property
    def failed(self) -> bool:
        return self._process is not None and self._process.returncode is not None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "model_server.llama_cpp",
            json.dumps(self._parameters),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._process.stdout is not None  # noqa: S101 (a pipe was asked for)
        line = await self._process.stdout.readline()
        if not line:
            status = await self._process.wait()
            raise EngineError(f"engine: got exit status {status} while loading, want a loaded model; see the lines above")
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        # llama.cpp closes a connection after a stream without saying so, and the next request on it would find it closed.
        self._session = aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0, force_close=True))
        url = json.loads(line)["url"]
        await self._loaded(url)
        self._abilities = await self._ask(url)
        self._url = url
        log.info("model loaded, engine at %s", self._url)

    async def _loaded(self, url: str) -> None:
        """Ends when the engine says that the model is loaded. Raises EngineError when the process ended."""
        assert self._session is not None and self._process is not None  # noqa: S101
        while self._process.returncode is None:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with self._session.get(f"{url}/health", timeout=aiohttp.ClientTimeout(total=10)) as response:
                    if response.status == HTTPStatus.OK:
                        return
            await asyncio.sleep(_LOADED_S)
        raise EngineError(f"engine: got exit status {self._process.returncode} while loading, want a loaded model; see the lines above")

    async def _ask(self, url: str) -> frozenset[str]:
        """What llama.cpp says of the model's template. Nothing, when it does not say it as this version does."""
        assert self._session is not None  # noqa: S101
        try:
            async with self._session.get(f"{url}/props", timeout=aiohttp.ClientTimeout(total=10)) as response:
                properties = await response.json()
            return _abilities(properties)
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("engine: got %s when asked what the model can do, want its properties; nothing is known", type(error).__name__)
            return frozenset()

    async def silent(self, limit_s: float) -> None:
        """Ends when the engine did not answer for so long, though its process lives. It is asked for its slots, because that question,
        unlike the one for its health, goes through the loop that generates (llama.cpp, tools/server/server-context.cpp)."""
        assert self._session is not None  # noqa: S101
        heard = time.monotonic()
        while (left := heard + limit_s - time.monotonic()) > 0:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with self._session.get(f"{self._url}/slots", timeout=aiohttp.ClientTimeout(total=left)) as response:
                    await response.read()
                    heard = time.monotonic()
            await asyncio.sleep(_ASK_S)

    async def wait(self) -> int:
        """Exit status of the engine, when it ends."""
        assert self._process is not None  # noqa: S101
        return await self._process.wait()

    def kill(self) -> None:
        """For one that hangs, and would not hear that it should end."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def stop(self) -> None:
        if self._session is not None:
            await self._session.close()
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            try:
                async with asyncio.timeout(10):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()

    @asynccontextmanager
    async def request(self, path: str, payload: Mapping[str, Any]) -> AsyncIterator[_HttpAnswer]:
        if self._session is None:
            raise EngineError("engine: got a request before the model was loaded, want it later")
        async with self._session.post(f"{self._url}{path}", json=dict(payload)) as response:
            yield _HttpAnswer(response)


_THOUGHTS = ("<think>", "enable_thinking", "reasoning_content", "reasoning_effort")
"""One of them stands in the chat template of every model that thinks."""


def _abilities(properties: Mapping[str, Any]) -> frozenset[str]:
    """From an answer of llama.cpp's /props. Source: tools/server/server-context.cpp, as packaged in xllamacpp 2026.10."""
    template: str = properties["chat_template"]
    found = {"completion"} | {name for name, here in properties["modalities"].items() if here}
    if properties["chat_template_caps"]["supports_tools"]:
        found.add("tools")
    if any(word in template for word in _THOUGHTS):
        found.add("thinking")
    return frozenset(found)
