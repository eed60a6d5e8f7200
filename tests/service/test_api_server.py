"""The API server in front of real model servers."""

import json
import signal
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.service.conftest import KEY, SCRIPT, ApiServerFactory, ModelServerFactory
from tests.service.processes import Service, free_port, refused

BODY = {"messages": [{"role": "user", "content": "Say it."}], "max_tokens": 64, "temperature": 0}


def route(service: Service, model: str, **fields: object) -> dict[str, object]:
    return {"url": service.url, "model": model, **fields}


def ask(service: Service, model: str, key: str = KEY, **fields: object) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}", "Origin": "https://elsewhere.example"}
    return httpx.post(f"{service.url}/v1/chat/completions", json={**BODY, "model": model, **fields}, headers=headers, timeout=60)


def test_it_forwards_answers_and_streams(api_server: ApiServerFactory, model_server: ModelServerFactory) -> None:
    api = api_server({"friendly": route(model_server("tiny:1"), "tiny:1")})
    response = ask(api, "friendly", options={"num_ctx": 1}, keep_alive=0)
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["message"]["content"] == SCRIPT
    assert response.headers["x-request-id"]
    lines = [line for line in ask(api, "friendly", stream=True).text.splitlines() if line]
    assert lines[-1] == "data: [DONE]"
    models = httpx.get(f"{api.url}/v1/models", headers={"Authorization": f"Bearer {KEY}"}, timeout=10).json()
    assert [model["id"] for model in models["data"]] == ["friendly"]


def test_refusals_have_openais_shape(api_server: ApiServerFactory, model_server: ModelServerFactory) -> None:
    api = api_server({"a": route(model_server("tiny:1"), "tiny:1")}, MAX_BODY_BYTES="4096")
    url = f"{api.url}/v1/chat/completions"
    headers = {"Authorization": f"Bearer {KEY}"}
    cases = [
        (ask(api, "a", key="wrong-key-wrong-key"), 401),
        (httpx.post(url, json=BODY, timeout=10), 401),
        (ask(api, "b"), 404),
        (httpx.post(url, content=b"{", headers=headers, timeout=10), 400),
        (httpx.post(url, json={"model": "a"}, headers=headers, timeout=10), 400),
        (ask(api, "a", messages=[{"role": "user", "content": "x" * 5000}]), 413),
        (httpx.post(f"{api.url}/api/pull", json={}, headers=headers, timeout=10), 404),
        (httpx.get(url, headers=headers, timeout=10), 405),
    ]
    for response, status in cases:
        assert response.status_code == status, response.text
        assert set(response.json()["error"]) == {"message", "type", "code", "param"}
    assert "want one of a" in cases[2][0].json()["error"]["message"]


def test_the_cap_of_an_address_holds(api_server: ApiServerFactory, model_server: ModelServerFactory) -> None:
    api = api_server({"slow": route(model_server("slow:1", PARALLEL="4"), "slow:1", max_in_flight=2)})
    results: list[httpx.Response] = []
    threads = [threading.Thread(target=lambda: results.append(ask(api, "slow", max_tokens=200))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(response.status_code for response in results) == [200, 200, 429, 429, 429]
    assert all("retry-after" in response.headers for response in results if response.status_code == 429)
    assert ask(api, "slow", max_tokens=3).status_code == 200, "a finished request frees its place"


def test_keys_rotate_without_a_restart(api_server: ApiServerFactory, model_server: ModelServerFactory, tmp_path: Path) -> None:
    api = api_server({"a": route(model_server("tiny:1"), "tiny:1")})
    assert ask(api, "a").status_code == 200
    fresh = tmp_path / "fresh"
    fresh.write_text("another-key-for-tests\n")
    fresh.replace(tmp_path / "keys")
    deadline = time.monotonic() + 30
    while ask(api, "a", key="another-key-for-tests").status_code != 200:
        assert time.monotonic() < deadline, "the file is read once a second"
        time.sleep(0.2)
    assert ask(api, "a").status_code == 401
    fresh.write_text("short\n")
    fresh.replace(tmp_path / "keys")
    log = tmp_path / "api-server.log"
    while "the old keys stay" not in log.read_text():
        assert time.monotonic() < deadline, "the file is read once a second"
        assert ask(api, "a", key="another-key-for-tests").status_code == 200, "an unusable file does not lock everybody out"
    assert ask(api, "a", key="another-key-for-tests").status_code == 200
    assert KEY not in log.read_text()


def test_a_stream_whose_server_dies_has_an_error_and_no_done(api_server: ApiServerFactory, model_server: ModelServerFactory) -> None:
    upstream = model_server("slow:1")
    api = api_server({"slow": route(upstream, "slow:1")})
    body = {**BODY, "model": "slow", "stream": True, "max_tokens": 1900}
    with httpx.stream(
        "POST", f"{api.url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=60
    ) as response:
        lines = response.iter_lines()
        next(lines)
        upstream.process.kill()
        rest = [line for line in lines if line]
    assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "upstream_error"
    assert "data: [DONE]" not in rest
    deadline = time.monotonic() + 10
    while ask(api, "slow").status_code != 503:
        assert time.monotonic() < deadline
    api.wait_for("/ready", 503)


def test_sigterm_loses_no_request(api_server: ApiServerFactory, model_server: ModelServerFactory) -> None:
    api = api_server({"slow": route(model_server("slow:1"), "slow:1")}, DRAIN_DELAY_S="5")
    body = {**BODY, "model": "slow", "stream": True, "max_tokens": 800}
    with httpx.stream(
        "POST", f"{api.url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=60
    ) as response:
        lines = response.iter_lines()
        next(lines)
        api.process.send_signal(signal.SIGTERM)
        api.wait_for("/ready", 503)
        assert ask(api, "slow", max_tokens=3).status_code == 200, "it still serves while endpoints forget it"
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert api.ended() == 0


def test_a_client_that_leaves_frees_the_server_behind(api_server: ApiServerFactory, model_server: ModelServerFactory) -> None:
    upstream = model_server("slow:1", PARALLEL="1", MAX_QUEUE="0")
    api = api_server({"slow": route(upstream, "slow:1")})
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{api.url}/v1/chat/completions",
            json={**BODY, "model": "slow", "max_tokens": 1900},
            headers={"Authorization": f"Bearer {KEY}"},
            timeout=1,
        )
    deadline = time.monotonic() + 10
    while ask(api, "slow", max_tokens=3).status_code != 200:
        assert time.monotonic() < deadline


def test_a_silent_server_is_given_up_after_the_timeout(api_server: ApiServerFactory, model_server: ModelServerFactory) -> None:
    api = api_server({"slow": route(model_server("slow:1"), "slow:1")}, REQUEST_TIMEOUT_S="1")
    response = ask(api, "slow", max_tokens=1900)
    assert (response.status_code, response.json()["error"]["code"]) == (502, "upstream_error")
    assert "got nothing for 1 s" in response.json()["error"]["message"]


def test_it_is_unready_without_a_server_and_ready_when_one_comes(api_server: ApiServerFactory, model_server: ModelServerFactory) -> None:
    port = free_port()
    api = api_server({"a": {"url": f"http://127.0.0.1:{port}", "model": "tiny:1"}}, ready="/health")
    api.wait_for("/ready", 503)
    assert ask(api, "a").status_code == 503
    model_server("tiny:1", PORT=str(port), ready="")
    api.wait_for("/ready", 200)


def test_bad_settings_are_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("short\n")
    status, errors = refused(
        "api_server", {"API_SERVER_KEYS_FILE": str(tmp_path / "keys"), "API_SERVER_ROUTES": '{"a": {"url": "ollama:1"}}'}
    )
    assert status == 2
    assert "API_SERVER_ROUTES.a.url: got a wrong value, want" in errors.replace("'", "")
    good = '{"a": {"url": "http://ollama:1"}}'
    status, errors = refused("api_server", {"API_SERVER_KEYS_FILE": str(tmp_path / "keys"), "API_SERVER_ROUTES": good})
    assert status == 2
    assert "want at least one, each of 16 or more characters" in errors
    status, errors = refused("api_server", {"API_SERVER_ROUTES": good})
    assert "API_SERVER_KEYS_FILE: got nothing, want a value; set the variable" in errors
