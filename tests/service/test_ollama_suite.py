"""Ollama's own integration tests against the API server. They send no key, so a hop adds one."""

import asyncio
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from model_sync import gguf
from tests import tiny_gguf
from tests.service import ollama as ollama_process
from tests.service.conftest import KEY, ApiServerFactory
from tests.service.processes import free_port

CONTEXT = 32768
WORDS = "Once upon a time in july, after the napoleonic war, the sky was blue by rayleigh scattering in the atmosphere, over water \N{SLIGHTLY SMILING FACE}"
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"location": "Boston"}}\n</tool_call>'


TEXT_TESTS = "^(TestAPI|TestBasic|TestChat|TestConcurrency|TestContext)$"
TOOL_TESTS = "^TestTools$"
PASSED = {
    TEXT_TESTS: {
        "TestAPI/api-generate/scripted:1/stream",
        "TestAPI/api-chat/scripted:1/no_stream",
        "TestAPI/generate-logprobs/scripted:1",
        "TestAPI/chat-logprobs/scripted:1",
        "TestBasic/blue-sky/scripted:1",
        "TestChat/chat/scripted:1",
        "TestConcurrency/concurrent-chat/scripted:1",
        "TestContext/context-long-input/scripted:1",
        "TestContext/context-exhaustion/scripted:1",
    },
    TOOL_TESTS: {
        "TestTools/tools/scripted:1",
        "TestTools/tools-routes/scripted:1/ollama",
        "TestTools/tools-routes/scripted:1/openai_chat_completions",
        "TestTools/tools-routes/scripted:1/openai_responses",
        "TestTools/tools-routes/scripted:1/anthropic_messages",
    },
}
"""What must not come to be skipped. Ollama skips what needs other models, a model that thinks, or a GPU (tools-stress)."""


@contextmanager
def hop(target: str) -> Iterator[str]:
    """HOST:PORT that passes everything on to `target` with a key."""
    port, loop = free_port(), asyncio.new_event_loop()
    ready, ended = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with aiohttp.ClientSession(auto_decompress=False) as session:

            async def forward(request: web.Request) -> web.StreamResponse:
                headers = {"Content-Type": request.content_type, "Authorization": f"Bearer {KEY}"}
                async with session.request(request.method, target + request.path_qs, data=await request.read(), headers=headers) as source:
                    answer = web.StreamResponse(status=source.status, headers={"Content-Type": source.headers.get("Content-Type", "")})
                    await answer.prepare(request)
                    async for chunk in source.content.iter_any():
                        await answer.write(chunk)
                    await answer.write_eof()
                    return answer

            app = web.Application(client_max_size=2**26)
            app.router.add_route("*", "/{path:.*}", forward)
            runner = web.AppRunner(app, handler_cancellation=True)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", port).start()
            ready.set()
            await ended.wait()
            await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(10)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ollama_process.integration_tests(tmp_path_factory.mktemp("suite"))


@pytest.mark.parametrize(("says", "tests"), [(WORDS, TEXT_TESTS), (CALL, TOOL_TESTS)], ids=["text", "tools"])
def test_ollamas_own_tests_pass_through_the_gateway(
    api_server: ApiServerFactory, ollama_program: Path, suite: Path, tmp_path: Path, says: str, tests: str
) -> None:
    gguf.add("scripted:1", tiny_gguf.make(tmp_path / "scripted.gguf", says, context=4 * CONTEXT), tmp_path / "models")
    with ollama_process.running(ollama_program, tmp_path / "models", tmp_path, OLLAMA_CONTEXT_LENGTH=str(CONTEXT)) as server:
        route = {"url": server.url, "model": "scripted:1", "engine": "ollama", "context_length": CONTEXT, "max_in_flight": 64}
        api = api_server({"scripted:1": route})
        with hop(api.url) as address:
            environment = {
                "PATH": os.environ["PATH"],
                "HOME": str(tmp_path),
                "OLLAMA_TEST_EXISTING": "1",
                "OLLAMA_HOST": address,
                "OLLAMA_TEST_MODEL": "scripted:1",
                "OLLAMA_CONTEXT_LENGTH": str(CONTEXT),
            }
            argv = [str(suite), "-test.v", "-test.timeout=5m", f"-test.run={tests}"]
            done = subprocess.run(argv, cwd=ollama_process.module() / "integration", env=environment, capture_output=True, text=True)
    results = re.findall(r"^\s*--- (PASS|FAIL|SKIP): (\S+)", done.stdout, re.MULTILINE)
    failed = {name for outcome, name in results if outcome == "FAIL"}
    assert failed == set(), done.stdout[-4000:]
    passed = {name for outcome, name in results if outcome == "PASS"}
    assert passed >= PASSED[tests], done.stdout[-4000:]
