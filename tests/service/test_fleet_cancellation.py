"""A client of the fleet that leaves: the real Ollama behind the gateway works for it no second longer, as engines of model servers do."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from model_sync import gguf
from tests import tiny_gguf
from tests.service import ollama as ollama_process
from tests.service.conftest import KEY, ApiServerFactory
from tests.service.processes import Service
from tests.service.test_gateway import metric

CONTEXT = 8192
PATHS = {
    "/v1/chat/completions": {"max_tokens": CONTEXT - 200},
    "/v1/completions": {"max_tokens": CONTEXT - 200},
    "/v1/messages": {"max_tokens": CONTEXT - 200},
    "/api/chat": {"options": {"num_predict": CONTEXT - 200}},
    "/api/generate": {"options": {"num_predict": CONTEXT - 200}},
}


@pytest.fixture(scope="module")
def server(ollama_program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """With one place, and a model that never stops by itself: 8,000 tokens take 15 s and longer."""
    work = tmp_path_factory.mktemp("endless")
    model = tiny_gguf.make(work / "slow.gguf", "tick tock ", loop=True, layers=8, ff=2048, context=CONTEXT)
    gguf.add("slow:1", model, work / "models")
    places, length = "1", str(CONTEXT)
    with ollama_process.running(ollama_program, work / "models", work, OLLAMA_NUM_PARALLEL=places, OLLAMA_CONTEXT_LENGTH=length) as running:
        ollama_process.load(running, "slow:1")
        yield running


def worked_s(server: Service) -> float:
    """CPU time of Ollama and its engine so far. Of them both a busy machine takes the same as an idle one."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        # Session, user and system time: proc(5).
        ticks += sum(map(int, fields[11:13])) if int(fields[3]) == server.process.pid else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def rests(server: Service) -> float:
    """Wait until nothing is generated any more. Returns the CPU time until then."""
    before, deadline = worked_s(server), time.monotonic() + 30
    last = before
    while True:
        time.sleep(0.5)
        now = worked_s(server)
        if now - last < 0.05:
            return now - before
        assert time.monotonic() < deadline, "it goes on for nobody"
        last = now


def asked(path: str, **fields: Any) -> dict[str, Any]:
    said = {"prompt": "Go on."} if path in ("/v1/completions", "/api/generate") else {"messages": [{"role": "user", "content": "Go on."}]}
    return {"model": "slow:1", **said, **fields}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_client_that_leaves_frees_the_replica(api_server: ApiServerFactory, server: Service, path: str, stream: bool) -> None:
    route = {"url": server.url, "model": "slow:1", "engine": "ollama", "context_length": CONTEXT, "max_in_flight": 1}
    api = api_server({"slow:1": route})
    headers = {"Authorization": f"Bearer {KEY}"}

    def one_more() -> httpx.Response:
        body = asked("/api/chat", stream=False, options={"num_predict": 1})
        return httpx.post(f"{api.url}/api/chat", json=body, headers=headers, timeout=60)

    body = asked(path, stream=stream, **PATHS[path])
    if stream:
        with httpx.stream("POST", f"{api.url}{path}", json=body, headers=headers, timeout=60) as response:
            text = response.iter_text()
            while "tick" not in next(text):
                pass
            assert one_more().status_code == 429, "it has the only place"
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{api.url}{path}", json=body, headers=headers, timeout=1.5)
    # A second of each thread.
    assert rests(server) < (os.cpu_count() or 1)
    assert one_more().status_code == 200
    assert metric(api, "api_server_in_flight_requests", upstream=server.url, address="127.0.0.1") == 0


def test_what_is_looked_for_would_be_seen(server: Service) -> None:
    """A request that nobody leaves takes more."""
    before, deadline = worked_s(server), time.monotonic() + 120
    body = asked("/api/generate", options={"num_predict": CONTEXT - 200})
    with httpx.stream("POST", f"{server.url}/api/generate", json=body, timeout=60):
        while worked_s(server) - before <= (os.cpu_count() or 1):
            assert time.monotonic() < deadline
            time.sleep(0.2)
