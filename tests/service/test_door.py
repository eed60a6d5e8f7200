"""What is decided at the gateway's door, before any model is asked: keys, greetings, browsers."""

import json
import re
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import jsonschema
import pytest

from tests.service.conftest import KEY, ApiServerFactory, start_api_server
from tests.service.processes import Service, free_port


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A gateway whose model has no server."""
    routes: dict[str, dict[str, object]] = {"a": {"url": f"http://127.0.0.1:{free_port()}"}}
    with ExitStack() as stack:
        origins = "https://ui.example, http://localhost:3000"
        yield start_api_server(stack, tmp_path_factory.mktemp("door"), routes, ready="/health", CORS_ORIGINS=origins)


def raw(service: Service, *lines: bytes) -> tuple[int, bytes]:
    """Status and body of an answer to a request of exactly these lines."""
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"\r\n".join([*lines, b"Host: a", b"Connection: close", b"", b""]))
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def _open(service: Service, count: int) -> list[socket.socket]:
    """Connections that got an answer, and stay."""
    host, port = service.url.removeprefix("http://").split(":")
    kept: list[socket.socket] = []
    for _ in range(count):
        connection = socket.create_connection((host, int(port)), timeout=10)
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        kept.append(connection)
    return kept


class TestOpenFiles:
    """A container's processes begin with the limit that its runtime gave them, often 1024."""

    def test_a_process_takes_as_many_as_it_may(self, tmp_path: Path) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        routes: dict[str, dict[str, object]] = {"a": {"url": f"http://127.0.0.1:{free_port()}"}}
        with ExitStack() as stack:
            resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
            try:
                service = start_api_server(stack, tmp_path, routes, ready="/health")
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for connection in _open(service, 400):
                connection.close()

    def test_a_limit_that_cannot_be_raised_bounds_the_connections(self, tmp_path: Path) -> None:
        """The one that idles longest makes room; nobody is left without an answer."""
        routes: dict[str, dict[str, object]] = {"a": {"url": f"http://127.0.0.1:{free_port()}"}}
        with ExitStack() as stack:
            service = start_api_server(stack, tmp_path, routes, ready="/health", files=364)
            connections = _open(service, 300)
            assert connections[0].recv(1) == b""
            connections[-1].sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            assert connections[-1].recv(65536).startswith(b"HTTP/1.1 200")
            for connection in connections:
                connection.close()
        assert "open files: got a limit of 364" in service.log.read_text()
        assert "serving 100" in service.log.read_text()


class TestKeys:
    @pytest.mark.parametrize(
        "headers",
        [
            [],
            [b"Authorization: Bearer \xff"],
            [b"Authorization: Bearer caf\xe9-0123456789abcdef"],
            [b"Authorization: Bearer " + "\N{LEFT DOUBLE QUOTATION MARK}".encode() + KEY.encode()],
            [b"Authorization:"],
            [b"Authorization: Bearer"],
            [b"Authorization: Basic " + KEY.encode()],
            [b"Authorization: Bearer " + b"x" * 30_000],
            [b"Authorization: Bearer " + KEY.encode(), b"Authorization: Bearer wrong"],
            [b"Authorization: Bearer wrong", b"Authorization: Bearer " + KEY.encode()],
            [b"x-api-key: \xff"],
            [b"x-api-key: " + KEY.encode(), b"x-api-key: wrong"],
            [b"Authorization: Bearer wrong", b"x-api-key: " + KEY.encode()],
        ],
        ids=str,
    )
    def test_whatever_is_no_key_is_401_in_openais_shape(self, door: Service, headers: list[bytes]) -> None:
        status, body = raw(door, b"GET /v1/models HTTP/1.1", *headers)
        assert (status, json.loads(body)["error"]["code"]) == (401, "invalid_api_key")
        assert "Traceback" not in door.log.read_text()

    @pytest.mark.parametrize(
        "header", [b"Authorization: Bearer " + KEY.encode(), b"authorization: bearer " + KEY.encode(), b"x-api-key: " + KEY.encode()]
    )
    def test_both_headers_count(self, door: Service, header: bytes) -> None:
        assert raw(door, b"GET /v1/models HTTP/1.1", header)[0] == 200

    def test_a_foreign_request_id_is_replaced(self, door: Service) -> None:
        line = b"POST /v1/chat/completions HTTP/1.1"
        status, body = raw(door, line, b"x-api-key: " + KEY.encode(), b"x-request-id: \xe9", b"Content-Length: 0")
        assert (status, json.loads(body)["error"]["type"]) == (400, "invalid_request_error")


class TestGreeting:
    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    def test_it_says_that_it_runs_without_a_key(self, door: Service, method: str) -> None:
        answer = httpx.request(method, f"{door.url}/", timeout=10)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/plain; charset=utf-8")
        assert answer.text == ("modelfleet is running" if method == "GET" else "")

    @pytest.mark.parametrize("accept", ["text/html,application/xhtml+xml,*/*;q=0.8", "text/html"])
    def test_a_browser_gets_the_page(self, door: Service, accept: str) -> None:
        answer = httpx.get(f"{door.url}/", headers={"Accept": accept}, timeout=10)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert (answer.headers["vary"], answer.headers["cache-control"]) == ("Accept, Origin", "no-store")
        for path in re.findall(r'(?:href|src)="([^"]+)"', answer.text):
            assert httpx.get(f"{door.url}/{path}", timeout=10).status_code == 200, path

    @pytest.mark.parametrize(
        "path", ["/page/", "/page/index.html", "/page/__init__.py", "/page/..%2f__main__.py", "/page/app.js/x", "/page/x"]
    )
    def test_nothing_else_is_open_without_a_key(self, door: Service, path: str) -> None:
        assert httpx.get(f"{door.url}{path}", timeout=10).status_code == 401
        assert httpx.get(f"{door.url}{path}", headers={"x-api-key": KEY}, timeout=10).status_code == 404


class TestFleet:
    @pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Accept": "text/html"}], ids=str)
    def test_an_anonymous_request_is_401_in_openais_shape(self, door: Service, headers: dict[str, str]) -> None:
        answer = httpx.get(f"{door.url}/fleet", headers=headers, timeout=10)
        assert answer.status_code == 401
        assert set(answer.json()["error"]) == {"message", "type", "code", "param"}
        assert answer.json()["error"]["code"] == "invalid_api_key"

    def test_what_it_says_is_what_the_document_promises(self, door: Service) -> None:
        found = httpx.get(f"{door.url}/fleet", headers={"x-api-key": KEY}, timeout=10)
        document = httpx.get(f"{door.url}/openapi.json", headers={"x-api-key": KEY}, timeout=10).json()
        schema = document["paths"]["/fleet"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        jsonschema.validate(found.json(), schema | {"components": document["components"]})
        (model,) = found.json()["models"]
        assert [(each["ready"], each["reason"]) for each in model["replicas"]] == [(False, "it takes no connection")]
        assert found.headers["cache-control"] == "no-store"
        for method in ("HEAD", "POST", "PUT", "DELETE"):
            assert httpx.request(method, f"{door.url}/fleet", headers={"x-api-key": KEY}, timeout=10).status_code == 405


class TestCors:
    PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}  # noqa: RUF012

    def test_a_named_origin_may_ask_and_read(self, door: Service) -> None:
        url, origin = f"{door.url}/v1/chat/completions", {"Origin": "https://ui.example"}
        allowed = httpx.options(url, headers=origin | self.PREFLIGHT, timeout=10)
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (204, "https://ui.example")
        assert "authorization" in allowed.headers["access-control-allow-headers"]
        answer = httpx.post(url, headers=origin, timeout=10)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (401, "https://ui.example"), (
            "an error can be read too"
        )

    def test_other_origins_and_the_default_allow_nothing(self, door: Service, api_server: ApiServerFactory) -> None:
        for service, origin in (
            (door, "https://evil.example"),
            (api_server({"a": {"url": "http://127.0.0.1:1"}}, ready="/health"), "https://ui.example"),
        ):
            refused = httpx.options(f"{service.url}/v1/models", headers={"Origin": origin} | self.PREFLIGHT, timeout=10)
            assert refused.status_code == 401
            assert "access-control-allow-origin" not in refused.headers
