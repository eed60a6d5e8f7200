"""Ollama's traps that the API server closes, each against the real server: what Ollama does by itself, and what clients get here.

The numbers are those of docs/traps.md.
"""

import hashlib
import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from model_sync import gguf
from tests import tiny_gguf
from tests.service import names
from tests.service import ollama as ollama_process
from tests.service.conftest import KEY, SCRIPT, ApiServerFactory
from tests.service.processes import Service, free_port, running
from tests.service.test_gateway import metric

CONTEXT = 2048
HEADERS = {"Authorization": f"Bearer {KEY}"}
MESSAGES = [{"role": "user", "content": "Say it."}]


@pytest.fixture
def server(ollama_program: Path, store: Path, tmp_path: Path) -> Iterator[Service]:
    """An Ollama of the test's own, because these tests change what is loaded."""
    with ollama_process.running(ollama_program, store, tmp_path) as service:
        ollama_process.load(service, "tiny:1")
        yield service


def route(url: str, model: str = "tiny:1", **fields: Any) -> dict[str, object]:
    return {"url": url, "model": model, "engine": "ollama", "context_length": CONTEXT, **fields}


def post(service: Service, path: str, **body: object) -> httpx.Response:
    return httpx.post(service.url + path, json=body, headers=HEADERS, timeout=60)


def loads(service: Service) -> int:
    """How often it started an engine for a model."""
    return service.log.read_text().count("--model ")


def test_trap_10_another_num_ctx_reloads_nothing(api_server: ApiServerFactory, server: Service) -> None:
    api = api_server({"tiny:1": route(server.url)})
    before = loads(server)
    for path, fields in (
        ("/api/chat", {"messages": MESSAGES, "options": {"num_ctx": 4096, "num_batch": 64, "temperature": 0}}),
        ("/api/generate", {"prompt": "Say it.", "options": {"num_ctx": 1024}}),
        ("/v1/chat/completions", {"messages": MESSAGES, "options": {"num_ctx": 4096}}),
    ):
        assert post(api, path, model="tiny:1", stream=False, **fields).status_code == 200
    assert (loads(server), ollama_process.context_of(server, "tiny:1")) == (before, CONTEXT)
    assert post(server, "/api/chat", model="tiny:1", messages=MESSAGES, stream=False, options={"num_ctx": 1024}).status_code == 200
    assert ollama_process.context_of(server, "tiny:1") == 1024, "Ollama itself obeys every client"
    assert loads(server) > before


def test_trap_11_a_prompt_is_refused_and_not_cut(api_server: ApiServerFactory, server: Service) -> None:
    api = api_server({"tiny:1": route(server.url)})
    body = {"model": "tiny:1", "messages": [{"role": "user", "content": "x" * 3000}, *MESSAGES]}
    cut = post(server, "/v1/chat/completions", **body)
    assert cut.status_code == 200, "Ollama itself answers"
    assert cut.json()["usage"]["prompt_tokens"] < 100, "from a prompt without its beginning"
    refused = post(api, "/v1/chat/completions", **body)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"


def test_trap_13_a_model_that_is_not_routed_is_never_loaded(api_server: ApiServerFactory, server: Service) -> None:
    api = api_server({"tiny:1": route(server.url)})
    for path, fields in (
        ("/api/generate", {"prompt": "a"}),
        ("/api/chat", {"messages": MESSAGES}),
        ("/v1/chat/completions", {"messages": MESSAGES}),
    ):
        assert post(api, path, model="slow:1", **fields).status_code == 404
    assert post(api, "/api/show", model="slow:1").status_code == 404
    assert ollama_process.context_of(server, "slow:1") == 0
    assert [model["name"] for model in httpx.get(f"{api.url}/api/tags", headers=HEADERS, timeout=10).json()["models"]] == ["tiny:1"]


def test_trap_14_no_client_unloads_a_model(api_server: ApiServerFactory, server: Service) -> None:
    api = api_server({"tiny:1": route(server.url)})
    for path, fields in (("/api/generate", {}), ("/api/chat", {"messages": MESSAGES}), ("/v1/chat/completions", {"messages": MESSAGES})):
        assert post(api, path, model="tiny:1", stream=False, keep_alive=0, **fields).status_code == 200
        assert ollama_process.context_of(server, "tiny:1") == CONTEXT
    post(server, "/api/generate", model="tiny:1", keep_alive=0)
    assert ollama_process.context_of(server, "tiny:1") == 0, "Ollama itself unloads it for everybody"


def test_trap_15_overload_is_said_at_once(api_server: ApiServerFactory, server: Service) -> None:
    body = {"model": "slow:1", "messages": MESSAGES, "max_tokens": 60}
    ollama_process.load(server, "slow:1")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: post(server, "/v1/chat/completions", **body).status_code, range(8)))
        assert answers == [200] * 8, "Ollama itself queues them all, whatever OLLAMA_MAX_QUEUE says"
    api = api_server({"slow:1": route(server.url, "slow:1", max_in_flight=2)})
    server.process.send_signal(signal.SIGSTOP)
    with ThreadPoolExecutor(2) as pool:
        busy = [pool.submit(post, api, "/v1/chat/completions", **body) for _ in range(2)]
        while metric(api, "api_server_in_flight_requests", address="127.0.0.1", upstream=server.url) < 2:
            assert not any(each.done() for each in busy)
        refused = [post(api, "/v1/chat/completions", **body) for _ in range(6)]
        server.process.send_signal(signal.SIGCONT)
        assert [each.result().status_code for each in busy] == [200, 200]
    assert [response.status_code for response in refused] == [429] * 6
    assert all(response.headers["retry-after"] for response in refused)


def test_trap_20_no_client_administers(api_server: ApiServerFactory, server: Service) -> None:
    api = api_server({"tiny:1": route(server.url)})
    for method, path in (
        ("DELETE", "/api/delete"),
        ("POST", "/api/pull"),
        ("POST", "/api/push"),
        ("POST", "/api/create"),
        ("POST", "/api/copy"),
    ):
        body = {"model": "tiny:1", "source": "tiny:1", "destination": "stolen:1", "from": "tiny:1"}
        assert httpx.request(method, api.url + path, json=body, headers=HEADERS, timeout=10).status_code == 404
    names = {model["name"] for model in httpx.get(f"{server.url}/api/tags", timeout=10).json()["models"]}
    assert {"tiny:1", "tool:1", "slow:1"} <= names
    assert "stolen:1" not in names
    assert httpx.get(f"{server.url}/api/tags", timeout=10).status_code == 200, "Ollama itself asks for no key"
    assert httpx.get(f"{api.url}/api/tags", timeout=10).status_code == 401


@contextmanager
def two_servers(program: Path, stores: tuple[Path, Path], work: Path, **fields: Any) -> Iterator[tuple[Service, list[Service]]]:
    """An API server whose upstream has two addresses, and the Ollama on each."""
    port, own_port, metrics_port = free_port(), free_port(), free_port()
    keys = work / "keys"
    keys.write_text(KEY)
    settings = {
        "HOST": "127.0.0.1",
        "PORT": str(own_port),
        "METRICS_PORT": str(metrics_port),
        "KEYS_FILE": str(keys),
        "ROUTES": json.dumps({"tiny:1": route(f"http://{names.FLEET}:{port}", **fields)}),
    }
    environment = {f"API_SERVER_{key}": value for key, value in settings.items()} | names.Name(work, "127.0.0.1", "127.0.0.2").environment
    with ExitStack() as stack:
        servers: list[Service] = []
        for number, store in enumerate(stores, 1):
            home = work / str(number)
            home.mkdir()
            host = f"127.0.0.{number}:{port}"
            servers.append(stack.enter_context(ollama_process.running(program, store, home, port, OLLAMA_HOST=host, OLLAMA_DEBUG="1")))
        api = stack.enter_context(running("api_server", own_port, environment, work / "api-server.log"))
        yield api, servers


def answered(service: Service) -> int:
    return service.log.read_text().count('"/v1/chat/completions"')


def test_trap_26_one_kept_connection_does_not_pin_one_server(ollama_program: Path, store: Path, tmp_path: Path) -> None:
    with two_servers(ollama_program, (store, store), tmp_path, max_in_flight=1) as (api, servers), httpx.Client(timeout=60) as client:
        for server in servers:
            ollama_process.load(server, "tiny:1")
        # As many as it takes for the gateway to have looked at both, on a busy machine.
        for number in range(400):
            # Other conversations each time: affinity is only among equals.
            body = {"model": "tiny:1", "messages": [{"role": "user", "content": f"Say {number}."}]}
            response = client.post(f"{api.url}/v1/chat/completions", json=body, headers=HEADERS)
            assert response.json()["choices"][0]["message"]["content"] == SCRIPT
            if number >= 12 and all(answered(server) for server in servers):
                return
        raise AssertionError([answered(server) for server in servers])


def test_a_conversation_stays_on_its_server_while_that_is_free(ollama_program: Path, store: Path, tmp_path: Path) -> None:
    with two_servers(ollama_program, (store, store), tmp_path) as (api, servers):
        for server in servers:
            ollama_process.load(server, "tiny:1")
        api.wait_for("/ready")
        counts = []
        for turn in range(6):
            messages = [*MESSAGES, *[{"role": "assistant", "content": SCRIPT}, {"role": "user", "content": "And?"}] * turn]
            assert post(api, "/v1/chat/completions", model="tiny:1", messages=messages).status_code == 200
            counts.append(tuple(answered(server) for server in servers))
        assert 0 in counts[-1], counts


def test_a_server_with_another_version_of_the_model_is_not_asked(ollama_program: Path, store: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    gguf.add("tiny:1", tiny_gguf.make(tmp_path / "other.gguf", "Something else."), other)
    manifest = next((store / "manifests").rglob("tiny/1"))
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    with two_servers(ollama_program, (other, store), tmp_path, digest=digest) as (api, servers):
        for number in range(6):
            body = {"model": "tiny:1", "messages": [{"role": "user", "content": f"Say {number}."}]}
            assert post(api, "/v1/chat/completions", **body).json()["choices"][0]["message"]["content"] == SCRIPT
        assert answered(servers[0]) == 0
