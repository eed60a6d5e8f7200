"""Whether the engines that Ollama started still answer: one that hangs is seen by nobody else, because Ollama itself goes on answering.

An engine listens on a loopback port that Ollama chose, and answers /health from a thread that does not generate, so a long prompt is no
silence. The agent cannot end it: the kubelet asks /alive instead, and starts the container again.
"""

import asyncio
import time
from pathlib import Path

import aiohttp

from ollama_agent import connections

_ASK_S = 5.0
"""Between two questions, and the longest wait for an answer."""
OLLAMA_SILENCE_S = 300.0
"""What Ollama itself may be silent for: it starts and ends engines, and nothing of that takes so long."""


class Engines:
    """When each of them was heard last. One counts from its first answer on: a port may be that of another kind of server."""

    def __init__(self, session: aiohttp.ClientSession, ollama_port: int, limit_s: float, net: Path = Path("/proc/net")) -> None:
        self._session, self._ollama_port, self._limit_s, self._net = session, ollama_port, limit_s, net
        self._heard: dict[tuple[int, int], float] = {}
        """By port and identity of the listening socket, in seconds of the monotonic clock."""

    async def watch(self) -> None:
        while True:
            started = time.monotonic()
            found = connections.loopback_listeners(self._net)
            if (listener := connections.listener(self._ollama_port, self._net)) is not None:
                found[self._ollama_port] = listener
            self._heard = {each: heard for each, heard in self._heard.items() if found.get(each[0]) == each[1]}
            await asyncio.gather(*(self._ask(port, inode) for port, inode in found.items()))
            await asyncio.sleep(max(0.0, started + _ASK_S - time.monotonic()))

    async def _ask(self, port: int, inode: int) -> None:
        path = "/" if port == self._ollama_port else "/health"
        try:
            async with self._session.get(f"http://127.0.0.1:{port}{path}", timeout=aiohttp.ClientTimeout(total=_ASK_S)):
                self._heard[port, inode] = time.monotonic()
        except (aiohttp.ClientError, OSError, TimeoutError):
            return

    def problem(self) -> str | None:
        """What hangs, in the words of the log; None while nothing does."""
        now = time.monotonic()
        for (port, _), heard in self._heard.items():
            name, limit_s = ("ollama", OLLAMA_SILENCE_S) if port == self._ollama_port else ("engine", self._limit_s)
            if now - heard > limit_s:
                return f"{name}: got no answer on port {port} for {limit_s:g} s, want one; it hangs, and is started again"
        return None
