"""Keys with names at a running API server, in front of a real Ollama: what each sees and may use, and what it has used."""

import hashlib
import http.client
import json
import random
import signal
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.service.conftest import SCRIPT, ApiServerFactory, ModelServerFactory, as_user
from tests.service.processes import Service
from tests.service.test_bounds import cpu_s
from tests.service.test_model_server import metric as of_server

ALICE, BOB, CAROL = "the-key-of-alice-0123", "the-key-of-bob-0123456", "the-key-of-carol-0123"
QUESTION = [{"role": "user", "content": "Say it."}]
MODELS = ("tiny:1", "slow:1", "embed:1")
REFUSED = "Authorization: got no valid key, want Bearer <key>; ask the operator of this fleet for one"


def grant(key: str, **fields: Any) -> dict[str, Any]:
    return {"hash": hashlib.blake2b(key.encode(), digest_size=32).hexdigest(), **fields}


def write(work: Path, **keys: dict[str, Any]) -> None:
    """As the kubelet does: another file under the same name."""
    (work / "keys.new").write_text(json.dumps(keys))
    (work / "keys.new").replace(work / "keys")


@pytest.fixture
def gateway(api_server: ApiServerFactory, ollama: Service, tmp_path: Path) -> Service:
    """With the keys that the test has written, or else ALICE, who may do everything, and BOB, who sees two names."""
    (tmp_path / "aliases").write_text(json.dumps({"coder": {"model": "slow:1"}, "writer": {"model": "tiny:1"}}))
    write(tmp_path, alice=grant(ALICE), bob=grant(BOB, owner="a team", models=["tiny:1", "coder"]))
    routes: dict[str, dict[str, object]] = {
        name: {"url": ollama.url, "model": name, "engine": "ollama", "context_length": 2048} for name in MODELS
    }
    return api_server(routes, ALIASES_FILE=str(tmp_path / "aliases"))


def client(gateway: Service, key: str) -> httpx.Client:
    return httpx.Client(base_url=gateway.url, headers={"Authorization": f"Bearer {key}"}, timeout=60, trust_env=False)


def chat(gateway: Service, key: str, model: str = "tiny:1", **fields: Any) -> httpx.Response:
    with client(gateway, key) as session:
        return session.post("/v1/chat/completions", json={"model": model, "messages": QUESTION, **fields})


def used(gateway: Service, name: str, **labels: str) -> float:
    """Sum of the samples with these labels."""
    text = httpx.get(f"{gateway.metrics_url}/metrics", timeout=10, trust_env=False).text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples if sample.name == name]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


@contextmanager
def stream(gateway: Service, key: str, tokens: int) -> Iterator[Iterator[str]]:
    """Lines of a slow answer, which is cut off at the end of the block."""
    body = {"model": "slow:1", "messages": QUESTION, "stream": True, "max_tokens": tokens}
    with client(gateway, key) as session, session.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200
        lines = response.iter_lines()
        next(lines)
        yield lines


def wait_until(said: Any, timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not said():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_each_key_sees_its_models_alone(gateway: Service) -> None:
    with client(gateway, ALICE) as alice, client(gateway, BOB) as bob:
        assert [each["id"] for each in alice.get("/v1/models").json()["data"]] == [*MODELS, "coder", "writer"]
        assert [each["id"] for each in bob.get("/v1/models").json()["data"]] == ["tiny:1", "coder"]
        assert {each["name"] for each in bob.get("/api/tags").json()["models"]} == {"tiny:1", "coder"}
        assert chat(gateway, ALICE, "embed:1", stream=False).status_code != 404
        assert bob.post("/v1/chat/completions", json={"model": "coder", "messages": QUESTION, "max_tokens": 3}).status_code == 200
        assert bob.post("/api/chat", json={"model": "tiny:1", "messages": QUESTION, "stream": False}).status_code == 200
        assert bob.post("/api/show", json={"model": "coder"}).status_code == 200
        fleet = bob.get("/fleet").json()
        assert [(each["id"], each["named"]) for each in fleet["models"]] == [("tiny:1", True), ("slow:1", False)]
        assert {each["model"] for each in fleet["key"]["usage"]} == {"tiny:1", "slow:1"}
        assert (fleet["key"]["name"], fleet["key"]["owner"], fleet["aliases"][0]["model"]) == ("bob", "a team", "slow:1")
        shown = bob.get("/openapi.json").text + bob.get("/api/ps").text + bob.get("/v1/models").text + bob.get("/fleet").text
        assert not [name for name in ("embed:1", "writer") if name in shown]
        assert "embed:1" in alice.get("/openapi.json").text
        assert "bob" not in alice.get("/fleet").text
        assert {each["model"]: each["requests"] for each in alice.get("/fleet").json()["key"]["usage"]} == {"embed:1": 1}


@pytest.mark.parametrize("hidden", ["slow:1", "embed:1", "writer"])
def test_a_hidden_model_is_refused_as_one_that_nobody_has(gateway: Service, hidden: str) -> None:
    with client(gateway, BOB) as bob:
        for method, path, body in (
            ("POST", "/v1/chat/completions", {"messages": QUESTION}),
            ("POST", "/v1/embeddings", {"input": "x"}),
            ("POST", "/api/chat", {"messages": QUESTION}),
            ("POST", "/api/show", {}),
            ("GET", "/v1/models/{}", None),
        ):
            answers = [
                bob.request(method, path.format(model), json=None if body is None else {"model": model, **body})
                for model in (hidden, "nobody:1")
            ]
            assert [each.status_code for each in answers] == [404, 404], path
            assert answers[0].text == answers[1].text.replace("nobody:1", hidden)


def test_limits_are_a_keys_own_and_refuse_in_the_shape_of_the_api(gateway: Service, tmp_path: Path) -> None:
    write(tmp_path, alice=grant(ALICE, requestsPerMinute=2), bob=grant(BOB, tokensPerMinute=5), carol=grant(CAROL, concurrency=1))
    time.sleep(1.1)
    assert [chat(gateway, ALICE).status_code for _ in range(3)] == [200, 200, 429]
    refused = chat(gateway, ALICE)
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert "got more than 2 requests a minute with this key" in refused.json()["error"]["message"]
    assert 50 <= int(refused.headers["Retry-After"]) <= 60
    with client(gateway, ALICE) as alice:
        assert isinstance(alice.post("/api/chat", json={"model": "tiny:1", "messages": QUESTION}).json()["error"], str)

    assert chat(gateway, BOB).status_code == 200, "tokens count when the answer is there"
    assert "got more than 5 tokens a minute with this key" in chat(gateway, BOB).json()["error"]["message"]

    def is_refused_beside_a_stream() -> bool:
        with stream(gateway, CAROL, 1500):
            return "got more than 1 requests at once with this key" in chat(gateway, CAROL).text

    # The whole stream may be over before a busy machine has sent the second request.
    wait_until(is_refused_beside_a_stream)
    wait_until(lambda: chat(gateway, CAROL, max_tokens=3).status_code == 200)
    assert used(gateway, "api_server_key_requests_total", key="alice", status="429", model="unknown") == 3


def test_the_key_of_the_highest_priority_is_the_next_for_a_busy_server(
    api_server: ApiServerFactory, model_server: ModelServerFactory, tmp_path: Path
) -> None:
    write(tmp_path, alice=grant(ALICE), bob=grant(BOB), carol=grant(CAROL, priority=5))
    server = model_server("tiny:1")
    gateway = api_server({"tiny:1": {"url": server.url, "max_in_flight": 1}}, QUEUE_S="60")
    ended: list[str] = []

    def ask(key: str, name: str) -> None:
        ended.append(f"{name} {chat(gateway, key, max_tokens=3).status_code}")

    each = ((ALICE, "first"), (ALICE, "alice"), (BOB, "bob"), (CAROL, "carol"))
    threads = [threading.Thread(target=ask, args=asked) for asked in each]
    server.process.send_signal(signal.SIGSTOP)
    for waiting, thread in enumerate(threads):
        thread.start()
        wait_until(lambda waiting=waiting: used(gateway, "api_server_waiting_requests") == waiting)
        wait_until(lambda: used(gateway, "api_server_in_flight_requests") == 1)
    server.process.send_signal(signal.SIGCONT)
    for thread in threads:
        thread.join(60)
    assert ended == ["first 200", "carol 200", "alice 200", "bob 200"]


def test_an_expired_key_is_told_so_and_nobody_else_is(gateway: Service, tmp_path: Path) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=3)
    write(tmp_path, alice=grant(ALICE, expires=soon.isoformat()), bob=grant(BOB))
    time.sleep(1.1)
    assert chat(gateway, ALICE).status_code == 200
    wait_until(lambda: chat(gateway, ALICE).status_code == 401)
    said = chat(gateway, ALICE).json()["error"]
    assert (said["message"], said["code"]) == (REFUSED.replace("no valid key", "a key that has expired"), "invalid_api_key")
    assert chat(gateway, CAROL).json()["error"]["message"] == REFUSED
    assert chat(gateway, BOB).status_code == 200


def test_a_key_is_revoked_without_a_restart_and_its_answers_go_to_their_end(gateway: Service, tmp_path: Path) -> None:
    with stream(gateway, ALICE, 400) as lines:
        write(tmp_path, bob=grant(BOB), carol=grant(CAROL))
        began = time.monotonic()
        wait_until(lambda: chat(gateway, ALICE).status_code == 401)
        assert time.monotonic() - began < 3
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert chat(gateway, CAROL).status_code == 200
    log = (tmp_path / "api-server.log").read_text()
    assert "keys reloaded: bob, carol" in log
    assert not [key for key in (ALICE, BOB, CAROL) if key in log]


def test_usage_is_counted_by_key_and_said_without_content(gateway: Service, tmp_path: Path) -> None:
    begun = time.monotonic()
    answers = [chat(gateway, ALICE), chat(gateway, ALICE, "writer"), chat(gateway, BOB)]
    took = time.monotonic() - begun
    assert [each.json()["choices"][0]["message"]["content"] for each in answers] == [SCRIPT] * 3
    usage = [each.json()["usage"] for each in answers]
    wait_until(lambda: used(gateway, "api_server_key_requests_total") == 3)
    for key, mine in (("alice", usage[:2]), ("bob", usage[2:])):
        labels = {"key": key, "model": "tiny:1"}
        assert used(gateway, "api_server_key_requests_total", status="200", **labels) == len(mine)
        for kind in ("prompt", "completion"):
            want = sum(each[f"{kind}_tokens"] for each in mine)
            assert used(gateway, "api_server_key_tokens_total", kind=kind, **labels) == want
        assert 0 < used(gateway, "api_server_key_server_seconds_total", **labels) <= took
    log = (tmp_path / "api-server.log").read_text()
    assert log.count(" key alice model tiny:1 status 200 ") == 2
    assert "Say it." not in log
    assert SCRIPT not in log


def test_a_stream_that_its_client_left_is_counted_by_what_came(gateway: Service) -> None:
    with stream(gateway, ALICE, 1500) as lines:
        came = sum(bool(next(lines)) for _ in range(40))
    wait_until(lambda: used(gateway, "api_server_key_requests_total", key="alice", status="499") == 1)
    labels = {"key": "alice", "model": "slow:1"}
    assert came <= used(gateway, "api_server_key_tokens_total", kind="completion", **labels) < 1500
    assert used(gateway, "api_server_key_tokens_total", kind="prompt", **labels) > 0
    assert used(gateway, "api_server_key_server_seconds_total", **labels) > 0


def test_cached_tokens_are_a_part_of_the_prompt(api_server: ApiServerFactory, model_server: ModelServerFactory, tmp_path: Path) -> None:
    write(tmp_path, alice=grant(ALICE))
    gateway = api_server({"tiny:1": {"url": model_server("tiny:1").url, "model": "tiny:1"}})
    for _ in range(2):
        assert chat(gateway, ALICE, temperature=0.5).status_code == 200
    cached, prompt = (used(gateway, "api_server_key_tokens_total", key="alice", kind=kind) for kind in ("cached", "prompt"))
    assert 0 < cached < prompt


def test_an_exact_answer_is_found_by_the_key_that_asked_for_it_alone(
    api_server: ApiServerFactory, model_server: ModelServerFactory, valkey: str, tmp_path: Path
) -> None:
    """A hit would tell what another key has asked."""
    write(tmp_path, alice=grant(ALICE), bob=grant(BOB))
    server = model_server("tiny:1", **as_user(valkey, "model-server", tmp_path))
    service = api_server({"tiny:1": {"url": server.url}})

    def outcome(key: str, **headers: str) -> str:
        body = {"model": "tiny:1", "messages": QUESTION, "temperature": 0, "seed": 271828}
        headers = {"x-api-key": key, "X-Cache": "exact", **headers}
        return httpx.post(f"{service.url}/v1/chat/completions", json=body, headers=headers, timeout=60).headers["x-cache"]

    assert [outcome(ALICE), outcome(ALICE)] == ["miss", "hit"]
    assert outcome(BOB, **{"X-Cache-Owner": "alice"}) == "miss"
    before = of_server(server, "model_server_reused_prompt_tokens_total")
    assert before > 0, "of Bob's, whose answer is kept with it"
    assert [outcome(BOB), outcome(BOB)] == ["hit", "hit"]
    assert of_server(server, "model_server_reused_prompt_tokens_total") == before
    assert used(service, "api_server_cached_tokens_total", model="tiny:1") == before


def test_a_thousand_wrong_keys_a_second_lock_out_nobody(gateway: Service) -> None:
    """Two seconds of them, from the address that the good key comes from."""
    every, clients = 2000, 4
    refusals, began = [0] * clients, time.monotonic()
    port = int(gateway.url.rpartition(":")[2])

    def knock(who: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for number in range(every // clients):
            time.sleep(max(0, began + number * clients / 1000 - time.monotonic()))
            connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer wrong-key-{who}-{number}"})
            response = connection.getresponse()
            response.read()
            refusals[who] += response.status == 401
        connection.close()

    threads = [threading.Thread(target=knock, args=(who,)) for who in range(clients)]
    for thread in threads:
        thread.start()
    answers: list[int] = []
    while any(thread.is_alive() for thread in threads) or not answers:
        answers.append(chat(gateway, ALICE).status_code)
    assert set(answers) == {200}
    assert sum(refusals) == every, "each is refused as the first one is"
    assert chat(gateway, ALICE).status_code == 200


ROUNDS, AT_ONCE = 30, 25
ALIKE = 1.4
"""The most that one refusal may cost beside another. Medians of CPU differ by up to a tenth on a machine with much other work; to ask a
server, or to hash as for passwords, would be far more."""


def test_no_refusal_can_be_told_by_the_work_that_it_costs(gateway: Service) -> None:
    """CPU, and not time: what nobody can hear through the noise of a network, this hears."""
    wrong_keys = ("bob", "alice", ALICE[:-1] + "x", "x" + ALICE[1:], "a-key-of-nobody-at-all", ALICE + ALICE)
    hidden_models = ("slow:1", "embed:1", "writer", "nobody:1")
    body = {"messages": QUESTION}
    kinds = {key: ("GET", "/v1/models", key, None, 401) for key in wrong_keys}
    kinds |= {model: ("POST", "/v1/chat/completions", BOB, json.dumps({"model": model, **body}), 404) for model in hidden_models}
    spent: dict[str, list[float]] = {kind: [] for kind in kinds}
    connection = http.client.HTTPConnection("127.0.0.1", int(gateway.url.rpartition(":")[2]), timeout=60)
    order = random.Random(1)  # noqa: S311
    for _ in range(ROUNDS):
        # In another order each time: what the process did before shows in its caches.
        for kind in order.sample(list(kinds), len(kinds)):
            method, path, key, text, status = kinds[kind]
            before = cpu_s(gateway, gateway.process.pid)
            for _ in range(AT_ONCE):
                connection.request(method, path, text, {"Authorization": f"Bearer {key}"})
                response = connection.getresponse()
                response.read()
                assert response.status == status, kind
            spent[kind].append(cpu_s(gateway, gateway.process.pid) - before)
    connection.close()
    for group in (wrong_keys, hidden_models):
        medians = {kind: statistics.median(spent[kind]) for kind in group}
        assert max(medians.values()) < ALIKE * min(medians.values()), medians


def test_the_old_form_goes_on_with_names_by_its_order(gateway: Service, tmp_path: Path) -> None:
    (tmp_path / "keys.new").write_text(f"{CAROL}\n{ALICE}\n")
    (tmp_path / "keys.new").replace(tmp_path / "keys")
    time.sleep(1.1)
    assert chat(gateway, ALICE).status_code == 200
    assert used(gateway, "api_server_key_requests_total", key="key-2", status="200") == 1
    assert "got lines of keys, the old form" in (tmp_path / "api-server.log").read_text()
