"""A client that leaves while its answer is written is no fault of the server that answers."""

import asyncio
from types import SimpleNamespace
from typing import Any, Self

import aiohttp
import pytest

from api_server import errors
from api_server.limits import ACCOUNT
from api_server.proxy import Proxy


class Source:
    """An answer that has begun."""

    def __init__(self) -> None:
        self.status, self.headers = 200, dict[str, str]()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


class Servers:
    """Two that are free, one after the other."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.asked = 0
        self.url, self.engine = "http://servers", "llama-cpp"

    def take(self, _: object, **__: object) -> Any:
        address = SimpleNamespace(host=f"server-{self.asked}", pool=None, spoke=lambda: None)
        return SimpleNamespace(address=address, said=lambda *_: None) if self.asked < 2 else None

    def failed(self, _: object, reason: str) -> None:
        self.faults.append(reason)

    def serves(self, _: object) -> bool:
        return False

    def worked(self, _: object) -> None:
        pass

    def release(self, _: object) -> None:
        pass


@pytest.mark.parametrize(
    ("fault", "raised", "asked"),
    [(ConnectionResetError("the client has left"), ConnectionResetError, 1), (aiohttp.ServerDisconnectedError(), errors.ApiError, 2)],
)
def test_only_a_servers_own_fault_is_counted_and_tried_elsewhere(fault: Exception, raised: type[Exception], asked: int) -> None:
    servers = Servers()

    async def send(*_: object) -> Source:
        servers.asked += 1
        if isinstance(fault, aiohttp.ClientError):
            raise fault
        return Source()

    async def relay(*_: object) -> None:
        raise fault

    counted: Any = SimpleNamespace(labels=lambda *_: SimpleNamespace(inc=lambda: None))
    metrics: Any = SimpleNamespace(upstream_errors=counted, turned=lambda *_, **__: None)
    settings: Any = SimpleNamespace(request_timeout_s=5.0, hold_s=0, queue_s=0)
    upstreams: Any = {servers.url: servers}
    parts: tuple[Any, ...] = (SimpleNamespace(), upstreams, metrics, SimpleNamespace(send=send), SimpleNamespace(), SimpleNamespace())
    proxy = Proxy(settings, *parts)
    request: Any = {ACCOUNT: SimpleNamespace(key=SimpleNamespace(grant=SimpleNamespace(priority=0)))}
    reader = SimpleNamespace(prompt_tokens=0, completion_tokens=0)
    answer: Any = SimpleNamespace(is_stream=False, relay=relay, request_id="1", reader=reader, model="a")
    question: Any = SimpleNamespace(
        route=SimpleNamespace(url=servers.url, model="", digest=""), model="a", turn=None, is_counted_here=False, server_s=0.0, body={}
    )
    claim: Any = SimpleNamespace(free=lambda: None)
    with pytest.raises(raised):
        asyncio.run(proxy._answer(request, answer, question, claim))  # pyright: ignore[reportPrivateUsage]
    assert servers.asked == asked
    assert len(servers.faults) == asked * (raised is errors.ApiError)
