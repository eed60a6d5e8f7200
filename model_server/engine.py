"""The seam between serving and generating, and what all engines share: a child process that speaks OpenAI's API on loopback."""

import asyncio
import contextlib
import json
import logging
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, ClassVar, Protocol

import aiohttp

from model_server.endpoints import BY_PATH, Endpoint
from model_server.errors import ApiError
from model_server.saved import Tokens
from model_server.words import LastWords

log = logging.getLogger("model_server")
_ASK_S = 5.0
"""Between two questions whether the engine still works."""
_LAST_S = 2.0
"""For an engine to end that does not answer any more."""
_LOADED_S = 0.1
"""Between two questions whether the model is loaded."""
UNEXPECTED = (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError, AttributeError)
"""What an answer of another form leads to."""
ASKED = aiohttp.ClientTimeout(total=10)
"""For a question that no model runs for."""


class EngineError(Exception):
    """The engine cannot start or has ended."""


class Answer(Protocol):
    """An engine's HTTP answer, possibly a stream of server-sent events."""

    status: int

    async def read(self) -> bytes: ...

    def chunks(self) -> AsyncIterator[bytes]: ...


class _HttpAnswer:
    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.status = response.status
        self._response = response

    async def read(self) -> bytes:
        return await self._response.read()

    def chunks(self) -> AsyncIterator[bytes]:
        return self._response.content.iter_any()


class Engine(ABC):
    """The seam: an engine in a child process that answers on a loopback port. A subclass says which program that is, and what differs.

    A process of its own: loading holds no lock of ours, a crash in native code is seen and reported, and closing the connection of a
    request ends its generation.
    """

    module: ClassVar[str]
    """Run as `python -m MODULE PARAMETERS`; it prints one JSON line with the `url` where the engine will answer."""
    endpoints: ClassVar[Mapping[str, Endpoint]] = BY_PATH
    """Path to what is passed on."""
    version: str = ""
    """Of the program that runs the weights; empty while it is not known."""
    restored_tokens: int = 0
    """Of conversations that another process of before had."""
    manner: str = ""
    """What of its settings changes its answers, beside the context."""
    lost: str = ""
    """What is said of a GPU that does not answer any more."""
    apart_by: ClassVar[str] = ""
    """The field of a request that keeps its prompt from being found by others; empty: the engine has none."""
    counts: ClassVar[bool] = False
    """Whether the engine counts tokens by itself; otherwise its answers say them."""

    def __init__(self, parameters: Mapping[str, Any], context: int) -> None:
        """`context`: tokens of one request, which were promised."""
        self.parameters, self.context, self.words = parameters, context, LastWords()
        self._process: asyncio.subprocess.Process | None = None
        self._session: aiohttp.ClientSession | None = None
        self._url = ""
        self._abilities: frozenset[str] = frozenset()

    @abstractmethod
    async def _ask(self, session: aiohttp.ClientSession, url: str) -> frozenset[str]:
        """What the loaded model can do. Raises any of UNEXPECTED where the engine does not say it as its pinned version does."""

    @abstractmethod
    async def _has(self, session: aiohttp.ClientSession, url: str) -> int:
        """Tokens that one request may have, as the engine says it. Raises any of UNEXPECTED."""

    @abstractmethod
    def _question(self) -> tuple[str, Mapping[str, Any]]:
        """Path and payload of the least that the loaded model can be asked."""

    @abstractmethod
    async def _works(self, session: aiohttp.ClientSession, url: str, left_s: float) -> bool:
        """Whether the loop that generates goes on. Raises aiohttp.ClientError or TimeoutError when it does not answer."""

    @abstractmethod
    def refusal(self, status: int, body: bytes) -> ApiError:
        """The engine's error in our form."""

    async def arrived(self, session: aiohttp.ClientSession, url: str) -> None:  # noqa: B027 (most engines have nothing to do)
        """What is done before the engine gets its first request."""

    async def leave(self) -> None:  # noqa: B027
        """What is done after its last one, before it is stopped."""

    async def tokens(self) -> Tokens | None:
        """Where the engine counts by itself: since it began. None while it does not answer. Raises what a question may."""
        return None

    async def returned(self) -> int:
        """Tokens from a process of before that a request has come back to since this was asked last. Raises what a question may."""
        return 0

    def answers_as(self, digest: str) -> str:
        """Whoever has this in common with it answers the same, beside the context. `digest`: of the weights."""
        return f"{self.version} {digest} {self.manner}".strip()

    @property
    def abilities(self) -> frozenset[str]:
        """What the loaded model can do: `completion`, `tools`, `thinking`, `vision`, `audio`. Empty while it is not known."""
        return self._abilities

    @property
    def ready(self) -> bool:
        return bool(self._url) and not self.failed and not self.lost

    @property
    def failed(self) -> bool:
        return self._process is not None and self._process.returncode is not None

    async def start(self) -> None:
        """Load the model, and have it answer once with the context that was promised. Raises EngineError."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            self.module,
            json.dumps(self.parameters),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert self._process.stdout is not None and self._process.stderr is not None  # noqa: S101 (pipes were asked for)
        self.words.follow(self._process.stderr)
        line = await self._process.stdout.readline()
        if not line:
            raise await self._ended("while loading, want a loaded model")
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        # An engine may close a connection after a stream without saying so, and the next request on it would find it closed.
        self._session = aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0, force_close=True))
        url = json.loads(line)["url"]
        await self._loaded(url)
        try:
            self._abilities = await self._ask(self._session, url)
        except UNEXPECTED as error:
            log.warning("engine: got %s when asked what the model can do, want its properties; nothing is known", type(error).__name__)
        await self._proven(self._session, url)
        # Afterwards: the question takes a slot.
        await self.arrived(self._session, url)
        self._url = url
        log.info("model loaded, and answers with %d tokens; engine at %s", self.context, self._url)

    async def _loaded(self, url: str) -> None:
        """Ends when the engine says that the model is loaded. Raises EngineError when the process ended."""
        assert self._session is not None and self._process is not None  # noqa: S101
        while self._process.returncode is None:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with self._session.get(f"{url}/health", timeout=ASKED) as response:
                    if response.status == HTTPStatus.OK:
                        return
            await asyncio.sleep(_LOADED_S)
        raise await self._ended("while loading, want a loaded model")

    async def _ended(self, when: str) -> EngineError:
        """What is said of an engine that has ended, or is about to."""
        assert self._process is not None  # noqa: S101
        status = await self._process.wait()
        await self.words.end()
        return EngineError(f"engine: got exit status {status} {when}; it said: {self.words.reason or 'nothing'}")

    async def _proven(self, session: aiohttp.ClientSession, url: str) -> None:
        """Whether it answers, and how long a request may be, is what the engine itself says: loaded weights alone do not show it."""
        try:
            has = await self._has(session, url)
            if has < self.context:
                want = f"want {self.context}; lower the context length, or take a model that was made for it"
                raise EngineError(f"engine: got a context of {has} tokens, {want}")
            path, payload = self._question()
            async with session.post(f"{url}{path}", json={"model": self.parameters["alias"], **payload}) as response:
                body = await response.read()
        except UNEXPECTED as error:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_S):
                    raise await self._ended("at its first question, want an answer") from None
            raise EngineError(f"engine: got {type(error).__name__} at its first question, want an answer; see its log") from None
        if response.status != HTTPStatus.OK:
            said = self.refusal(response.status, body).body("openai")["error"]["message"]
            raise EngineError(f"engine: got status {response.status} at its first question, want an answer; it said: {said}")

    async def silent(self, limit_s: float) -> None:
        """Ends when the loop of the engine did not go on for so long, though its process lives."""
        assert self._session is not None  # noqa: S101
        heard = time.monotonic()
        while (left := heard + limit_s - time.monotonic()) > 0:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                if await self._works(self._session, self._url, left):
                    heard = time.monotonic()
            await asyncio.sleep(min(_ASK_S, limit_s / 4))

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
    async def request(self, path: str, payload: Mapping[str, Any]) -> AsyncIterator[Answer]:
        """An Answer to a request to one of `endpoints`. Leaving the block early frees whatever the request holds."""
        if self._session is None:
            raise EngineError("engine: got a request before the model was loaded, want it later")
        async with self._session.post(f"{self._url}{path}", json=dict(payload)) as response:
            yield _HttpAnswer(response)
