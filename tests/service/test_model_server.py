"""The model server with a real engine."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path

import httpx
import pytest
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics

from model_sync import gguf
from tests import tiny_gguf
from tests.cuda_stand_in import LLAMA_SERVER
from tests.service.conftest import SCRIPT, ModelServerFactory, as_user, start_model_server
from tests.service.processes import ROOT, Service, refused

BODY = {"messages": [{"role": "user", "content": "Say it."}], "max_tokens": 64, "temperature": 0}


def ask(service: Service, model: str = "tiny:1", headers: dict[str, str] | None = None, **fields: object) -> httpx.Response:
    return httpx.post(f"{service.url}/v1/chat/completions", json={**BODY, "model": model, **fields}, headers=headers, timeout=60)


def metric(service: Service, name: str) -> float:
    text = httpx.get(f"{service.url}/metrics", timeout=10).text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name) and not line.startswith("#"))


def test_it_generates_streams_and_counts(model_server: ModelServerFactory) -> None:
    service = model_server("tiny:1")
    (entry,) = httpx.get(f"{service.url}/v1/models", timeout=10).json()["data"]
    assert re.fullmatch(rf"llama.cpp xllamacpp {re.escape(metadata.version('xllamacpp'))} sha256:[0-9a-f]{{64}}", entry["version"])
    response = ask(service)
    assert response.status_code == 200
    assert response.json()["choices"][0]["message"]["content"] == SCRIPT
    lines = [line for line in ask(service, stream=True).text.splitlines() if line]
    assert lines[-1] == "data: [DONE]"
    parts = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"].get("content") or "" for line in lines[:-1]]
    assert "".join(parts) == SCRIPT
    assert metric(service, "model_server_generated_tokens_total") == 2 * response.json()["usage"]["completion_tokens"]
    assert metric(service, 'model_server_requests_total{status="200"}') == 2
    assert metric(service, "model_server_engine_up") == 1


OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def samples(url: str) -> tuple[set[str], set[str]]:
    """Names of the samples in the old form of metrics, and in OpenMetrics."""
    plain, new = (httpx.get(f"{url}/metrics", timeout=10, headers={"Accept": accept}) for accept in ("*/*", OPENMETRICS))
    assert plain.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert new.headers["Content-Type"].startswith(OPENMETRICS)
    assert new.text.endswith("# EOF\n")
    families = parser.text_string_to_metric_families(plain.text), openmetrics.text_string_to_metric_families(new.text)
    old, found = ({sample.name for family in each for sample in family.samples} for each in families)
    return old, found


def test_metrics_come_in_the_form_that_is_asked_for(model_server: ModelServerFactory) -> None:
    service = model_server("tiny:1")
    assert ask(service).status_code == 200
    old, new = samples(service.url)
    assert old == new
    assert {"model_server_generated_tokens_total", "model_server_engine_up", "model_server_requests_total"} <= new


def test_streams_one_after_the_other_are_all_answered(model_server: ModelServerFactory) -> None:
    """llama.cpp closes the connection after a stream, a moment later than the client can use it again."""
    service = model_server("tiny:1")
    with httpx.Client(timeout=60) as client:
        body = {"model": "tiny:1", "prompt": "Say it.", "temperature": 0, "stream": True}
        answers = [client.post(f"{service.url}/v1/completions", json=body) for _ in range(60)]
    assert {answer.status_code for answer in answers} == {200}
    assert all(answer.text.endswith("data: [DONE]\n\n") for answer in answers)


def test_a_program_llama_server_takes_the_place_of_the_package(model_server: ModelServerFactory, tmp_path: Path) -> None:
    binary = tmp_path / "llama-server"
    binary.write_text(LLAMA_SERVER.format(python=sys.executable))
    binary.chmod(0o755)
    service = model_server("tiny:1", LLAMA_SERVER=str(binary))
    assert ask(service).json()["choices"][0]["message"]["content"] == SCRIPT
    assert "llama-server serves" in service.log.read_text()
    engine = int(subprocess.check_output(["pgrep", "-f", f"^{sys.executable} {binary}"]))
    service.process.kill()
    for _ in range(100):
        if not Path(f"/proc/{engine}").exists():
            return
        time.sleep(0.05)
    raise AssertionError("the engine outlives its server")


def test_a_program_that_cannot_load_ends_the_server(tmp_path: Path, store: Path) -> None:
    binary = tmp_path / "llama-server"
    binary.write_text("#!/bin/sh\necho no device >&2\nexit 3\n")
    binary.chmod(0o755)
    env = {"MODELS_DIR": str(store), "MODEL": "tiny:1", "HOST": "127.0.0.1", "PORT": "0", "LLAMA_SERVER": str(binary)}
    done = subprocess.run(
        [sys.executable, "-m", "model_server"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **{f"MODEL_SERVER_{key}": value for key, value in env.items()}},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "no device" in done.stderr
    assert "engine: got exit status 3 while loading, want a loaded model" in done.stderr


def post(service: Service, path: str, **fields: object) -> httpx.Response:
    return httpx.post(service.url + path, json={"model": "tiny:1", **fields}, timeout=60)


def test_every_endpoint_of_the_engine_is_passed_on_and_counted(model_server: ModelServerFactory) -> None:
    service = model_server("tiny:1")
    messages = BODY["messages"]
    assert post(service, "/v1/completions", prompt="Say it.", temperature=0).json()["choices"][0]["text"] == SCRIPT
    assert post(service, "/v1/responses", input="Say it.").json()["output"][0]["content"][0]["text"] == SCRIPT
    message = post(service, "/v1/messages", messages=messages, max_tokens=64).json()
    assert (message["type"], message["content"]) == ("message", [{"type": "text", "text": SCRIPT}])
    written = message["usage"]["output_tokens"]
    assert metric(service, "model_server_generated_tokens_total") == 3 * written
    read = sum(metric(service, f"model_server_{kind}prompt_tokens_total") for kind in ("", "reused_"))
    for path, fields in (("/v1/responses", {"input": "Say it."}), ("/v1/messages", {"messages": messages, "max_tokens": 64})):
        assert SCRIPT.split()[-1] in post(service, path, stream=True, **fields).text
    assert metric(service, "model_server_generated_tokens_total") == 5 * written
    assert sum(metric(service, f"model_server_{kind}prompt_tokens_total") for kind in ("", "reused_")) > read
    read = metric(service, "model_server_prompt_tokens_total")
    assert post(service, "/v1/messages/count_tokens", messages=messages).json()["input_tokens"] > 5
    assert metric(service, "model_server_prompt_tokens_total") == read, "a count is no reading"
    tokens = httpx.post(f"{service.url}/tokenize", json={"content": "Say it."}, timeout=10).json()["tokens"]
    assert httpx.post(f"{service.url}/detokenize", json={"tokens": tokens}, timeout=10).json()["content"] == "Say it."


def test_what_the_engine_cannot_read_is_the_clients_fault(model_server: ModelServerFactory) -> None:
    """llama.cpp answers 500, after which a gateway would ask the next server and count a failure of this one."""
    service, messages = model_server("tiny:1"), BODY["messages"]
    wrong: tuple[tuple[str, dict[str, object]], ...] = (
        *(("/detokenize", {"tokens": [token]}) for token in (265, -1, 2**31, 2**70)),
        ("/v1/chat/completions", {"messages": messages, "tools": 5}),
        ("/v1/chat/completions", {"messages": messages, "reasoning_format": "x"}),
        ("/v1/responses", {"input": "Say it.", "reasoning_format": "x"}),
        ("/v1/responses", {"input": "Say it.", "tools": 5}),
    )
    for path, fields in wrong:
        answer = post(service, path, **fields)
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error"), (path, fields, answer.text)


_FAILING = """#!{python}
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    asked = 0
    def do_GET(self):
        self.answer(200, b'{{"default_generation_settings": {{"n_ctx": {context}}}}}')
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        Handler.asked += 1
        if self.path.endswith("input_tokens") or Handler.asked <= {answers}:
            return self.answer(200, b"{{}}")
        self.answer(500, b'{{"error": {{"message": "Compute error.", "type": "server_error"}}}}')
    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""
"""A llama-server that reads every request, answers a few, and then cannot compute."""


def program(work: Path, text: str) -> str:
    """A `llama-server` with this text."""
    binary = work / "llama-server"
    binary.write_text(text)
    binary.chmod(0o755)
    return str(binary)


def test_a_failure_of_the_engine_stays_one(model_server: ModelServerFactory, tmp_path: Path) -> None:
    failing = program(tmp_path, _FAILING.format(python=sys.executable, answers=1, context=2048))
    answer = ask(model_server("tiny:1", LLAMA_SERVER=failing))
    assert (answer.status_code, answer.json()["error"]["message"]) == (500, "Compute error.")


def last_words(start: ModelServerFactory, work: Path, model: str = "tiny:1", **env: str) -> list[str]:
    """What a server leaves for the kubelet that ends by itself, before it was ever ready."""
    words = work / "last-words"
    service = start(model, "", LAST_WORDS_FILE=str(words), **env)
    assert service.ended(60) == 1
    return words.read_text().splitlines()


def test_a_model_that_loads_and_does_not_answer_is_never_ready(model_server: ModelServerFactory, tmp_path: Path) -> None:
    failing = program(tmp_path, _FAILING.format(python=sys.executable, answers=0, context=2048))
    assert last_words(model_server, tmp_path, LLAMA_SERVER=failing)[-1] == (
        "engine: got status 500 at its first question, want an answer; it said: Compute error."
    )


def test_an_engine_with_a_smaller_context_than_was_promised_is_never_ready(model_server: ModelServerFactory, tmp_path: Path) -> None:
    small = program(tmp_path, _FAILING.format(python=sys.executable, answers=9, context=1024))
    want = "want 2048; lower the context length, or take a model that was made for it"
    assert last_words(model_server, tmp_path, LLAMA_SERVER=small)[-1] == f"engine: got a context of 1024 tokens, {want}"


def test_a_context_that_the_model_was_not_made_for_is_refused_by_its_number(model_server: ModelServerFactory, tmp_path: Path) -> None:
    """llama.cpp itself cuts its slots to it, and says nothing to who asks."""
    assert last_words(model_server, tmp_path, CONTEXT_LENGTH="65536")[-1].startswith("engine: got a context of 8192 tokens, want 65536;")


def test_a_crash_while_loading_keeps_its_last_words(model_server: ModelServerFactory, tmp_path: Path) -> None:
    crash = "#!/bin/sh\necho loading >&2\necho 'CUDA error: out of memory' >&2\necho bye >&2\nexit 3\n"
    assert last_words(model_server, tmp_path, LLAMA_SERVER=program(tmp_path, crash)) == [
        *("loading", "CUDA error: out of memory", "bye"),
        "engine: got exit status 3 while loading, want a loaded model; it said: CUDA error: out of memory",
    ]


def test_llama_cpp_says_itself_why_it_does_not_load_a_damaged_file(tmp_path: Path) -> None:
    gguf.add("damaged:1", tiny_gguf.make(tmp_path / "whole.gguf", SCRIPT), tmp_path / "models")
    (blob,) = (path for path in (tmp_path / "models" / "blobs").iterdir() if path.stat().st_size > 100_000)
    with blob.open("r+b") as file:
        file.seek(64)
        file.write(b"\xff" * 4096)
    with ExitStack() as stack:
        start = functools.partial(start_model_server, stack, tmp_path / "models", tmp_path)
        words = last_words(start, tmp_path, "damaged:1")
    assert re.search(r"exit status 1 while loading, want a loaded model; it said: \S+ E .*exceeds maximum", words[-1])


def test_an_engine_that_is_killed_leaves_its_last_words(model_server: ModelServerFactory, tmp_path: Path) -> None:
    words = tmp_path / "last-words"
    service = model_server("tiny:1", LAST_WORDS_FILE=str(words))
    os.kill(int(Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children").read_text()), signal.SIGKILL)
    assert service.ended() == 1
    assert "engine: got exit status -9, want it to run; ending so that it is started again" in words.read_text().splitlines()[-1]
    assert len(words.read_bytes()) <= 4096


def test_a_model_of_embeddings_makes_them_and_others_say_that_they_do_not(model_server: ModelServerFactory) -> None:
    embeds, writes = model_server("embed:1"), model_server("tiny:1")
    texts = ["one text", "another one", "a long one " * 100]
    made = post(embeds, "/v1/embeddings", model="embed:1", input=texts)
    assert [each["index"] for each in made.json()["data"]] == [0, 1, 2]
    assert metric(embeds, "model_server_prompt_tokens_total") == made.json()["usage"]["prompt_tokens"] > 1000
    for path, fields in (("/v1/embeddings", {"input": "a"}), ("/v1/rerank", {"query": "a", "documents": ["b"]})):
        refusal = post(writes, path, **fields)
        assert (refusal.status_code, refusal.json()["error"]["code"]) == (400, "unsupported_endpoint")


def test_a_model_of_scores_makes_them(model_server: ModelServerFactory) -> None:
    answer = post(model_server("rank:1"), "/v1/rerank", model="rank:1", query="a", documents=["b", "c"])
    assert answer.status_code == 200, answer.text
    assert [each["index"] for each in answer.json()["results"]] == [0, 1]
    assert all(isinstance(each["relevance_score"], float) for each in answer.json()["results"])


def test_messages_has_the_errors_of_its_api(model_server: ModelServerFactory) -> None:
    service = model_server("tiny:1")
    long = [{"role": "user", "content": "x" * 5000}]
    for fields, status, kind, words in (
        ({"messages": long, "max_tokens": 9}, 400, "invalid_request_error", "prompt is too long: "),
        ({"model": "other", "messages": long}, 404, "not_found_error", "model: got 'other', want tiny:1"),
        ({"messages": 5}, 400, "invalid_request_error", "messages: got no list"),
    ):
        refusal = post(service, "/v1/messages", **fields)
        assert refusal.status_code == status
        assert refusal.json()["type"] == "error"
        assert refusal.json()["error"]["type"] == kind
        assert words in refusal.json()["error"]["message"]
    assert httpx.get(f"{service.url}/v1/messages", timeout=10).json()["type"] == "error"


def test_wrong_requests_are_refused_with_the_reason(model_server: ModelServerFactory) -> None:
    service = model_server("tiny:1")
    assert ask(service, "other").json()["error"]["message"] == "model: got 'other', want tiny:1; correct it"
    assert httpx.post(f"{service.url}/v1/chat/completions", content=b"{", timeout=10).status_code == 400
    assert ask(service, messages=[]).status_code == 400
    too_long = ask(service, messages=[{"role": "user", "content": "x" * 5000}])
    assert too_long.status_code == 400
    error = too_long.json()["error"]
    assert error["code"] == "context_length_exceeded"
    found = re.search(r"prompt is too long: (\d+) tokens > 2048 maximum", error["message"])
    assert found
    assert int(found[1]) >= 5000


def test_an_exact_answer_is_kept_only_on_request(model_server: ModelServerFactory, valkey: str, tmp_path: Path) -> None:
    service = model_server("tiny:1", **as_user(valkey, "model-server", tmp_path))
    exact = {"X-Cache": "exact"}
    assert "x-cache" not in ask(service).headers
    begun = time.monotonic()
    assert ask(service, headers=exact).headers["x-cache"] == "miss"
    took_s = time.monotonic() - begun
    assert metric(service, "model_server_saved_seconds_total") == 0
    reused = metric(service, "model_server_reused_prompt_tokens_total")
    hit = ask(service, headers=exact)
    assert hit.headers["x-cache"] == "hit"
    once = metric(service, 'model_server_saved_seconds_total{tier="answers"}')
    assert 0 < once < took_s, "what it took the engine, the first time"
    ask(service, headers=exact)
    assert metric(service, 'model_server_saved_seconds_total{tier="answers"}') == pytest.approx(2 * once)
    assert metric(service, "model_server_reused_prompt_tokens_total") == reused, "and no tier has the tokens of its prompt"
    assert hit.json()["choices"][0]["message"]["content"] == SCRIPT
    assert ask(service, headers=exact, max_tokens=3).headers["x-cache"] == "miss", "every field that matters is in the key"
    assert ask(service, headers=exact, temperature=1).headers["x-cache"] == "bypass", "an answer by chance is not kept"


def test_a_cache_that_is_down_is_bypassed(model_server: ModelServerFactory) -> None:
    service = model_server("tiny:1", CACHE_URL="redis://127.0.0.1:1/0")
    response = ask(service, headers={"X-Cache": "exact"})
    assert (response.status_code, response.headers["x-cache"]) == (200, "bypass")


def test_more_than_slots_and_queue_is_refused_at_once(model_server: ModelServerFactory) -> None:
    service = model_server("slow:1", PARALLEL="1", MAX_QUEUE="1")
    results: list[httpx.Response] = []
    threads = [threading.Thread(target=lambda: results.append(ask(service, "slow:1", max_tokens=100))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statuses = sorted(response.status_code for response in results)
    assert statuses == [200, 200, 503, 503]
    assert all(response.headers["retry-after"] for response in results if response.status_code == 503)


def test_a_client_that_leaves_frees_its_slot(model_server: ModelServerFactory) -> None:
    service = model_server("slow:1", PARALLEL="1", MAX_QUEUE="0")
    with httpx.stream(
        "POST", f"{service.url}/v1/chat/completions", json={**BODY, "model": "slow:1", "stream": True, "max_tokens": 1900}, timeout=30
    ) as response:
        chunks = response.iter_bytes()
        next(chunks)
        assert metric(service, "model_server_running_requests") == 1
    deadline = time.monotonic() + 10
    while metric(service, "model_server_running_requests"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert ask(service, "slow:1", max_tokens=3).status_code == 200


def test_a_running_stream_outlives_sigterm(model_server: ModelServerFactory) -> None:
    service = model_server("slow:1", DRAIN_DELAY_S="0.5")
    with httpx.stream(
        "POST", f"{service.url}/v1/chat/completions", json={**BODY, "model": "slow:1", "stream": True, "max_tokens": 800}, timeout=60
    ) as response:
        lines = response.iter_lines()
        next(lines)
        service.process.send_signal(signal.SIGTERM)
        service.wait_for("/ready", 503)
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert service.ended() == 0


def test_a_dead_engine_is_reported_and_ends_the_server(model_server: ModelServerFactory) -> None:
    service = model_server("tiny:1")
    children = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children").read_text().split()
    assert len(children) == 1
    os.kill(int(children[0]), signal.SIGKILL)
    assert service.ended() == 1
    assert "engine: got exit status -9" in service.log.read_text()


def test_an_engine_that_hangs_ends_the_server(model_server: ModelServerFactory) -> None:
    service = model_server("tiny:1", ENGINE_SILENCE_S="5", DRAIN_S="0")
    engine = int(Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children").read_text())
    os.kill(engine, signal.SIGSTOP)
    assert service.ended() == 1
    assert "engine: got no answer, want one; it hangs; ending so that it is started again" in service.log.read_text()
    assert not is_alive(engine)


def test_every_error_has_one_shape(model_server: ModelServerFactory) -> None:
    service = model_server("tiny:1")
    url = f"{service.url}/v1/chat/completions"
    start = '{"model": "tiny:1", "messages": '
    for body in (
        "[" * 40_000,
        start + "[" * 40_000,
        start + '[{"role": "user", "content": "\\ud800"}]}',
        start + "[5]}",
        start + "[{}]}",
        "\xff",
    ):
        refused = httpx.post(url, content=body.encode("latin-1"), timeout=60)
        assert refused.status_code == 400, body[:60]
        assert set(refused.json()["error"]) == {"message", "type", "code", "param"}
    gzipped = httpx.post(url, content=b"no gzip", headers={"Content-Encoding": "gzip"}, timeout=10)
    assert (gzipped.status_code, set(gzipped.json())) == (400, {"error"})
    for method, path, status in (("GET", "/v1/chat/completions", 405), ("POST", "/v1/nothing", 404), ("GET", "/%ff", 404)):
        refused = httpx.request(method, service.url + path, timeout=10)
        assert (refused.status_code, "POST /v1/chat/completions" in refused.json()["error"]["message"]) == (status, True)
    too_large = httpx.post(url, content=b" " * (33 * 2**20), timeout=60)
    assert (too_large.status_code, set(too_large.json()["error"])) == (413, {"message", "type", "code", "param"})
    assert httpx.get(f"{service.url}/openapi.json", timeout=10).json()["openapi"] == "3.1.0"
    assert "Traceback" not in service.log.read_text()


@pytest.mark.parametrize("wait_s", [0.0, 2.0], ids=["starting", "loading"])
def test_the_engine_ends_with_a_server_that_is_killed_while_it_loads(tmp_path: Path, wait_s: float) -> None:
    """A model that never comes: the library waits in its open(), and lets no other thread of the process run."""
    pipe = tmp_path / "model.gguf"
    os.mkfifo(pipe)
    given = {
        "binary": "",
        "model": str(pipe),
        "pooling": 0,
        "alias": "x",
        "context": 512,
        "parallel": 1,
        "prompt_cache_mib": 0,
        "threads": 1,
        "slots_dir": "",
    }
    parameters = json.dumps(given)
    server = (
        "import subprocess, sys\n"
        "engine = subprocess.Popen([sys.executable, '-m', 'model_server.llama_cpp', sys.argv[1]], stdin=subprocess.PIPE)\n"
        "print(engine.pid, flush=True)\n"
        "engine.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", server, parameters], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        engine = int(process.stdout.readline())
        time.sleep(wait_s)
        assert is_alive(engine)
        process.kill()
    deadline = time.monotonic() + 10
    try:
        while is_alive(engine):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        if is_alive(engine):
            os.kill(engine, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_bad_settings_are_one_clear_line(store: Path) -> None:
    status, errors = refused("model_server", {"MODEL_SERVER_MODEL": "tiny:1", "MODEL_SERVER_PARALLEL": "0", "MODEL_SERVER_NONSENSE": "1"})
    assert status == 2
    assert "error: MODEL_SERVER_PARALLEL: got '0', want greater than or equal to 1; correct the variable" in errors
    assert "MODEL_SERVER_NONSENSE: got an unknown variable, want one of" in errors
    status, errors = refused("model_server", {"MODEL_SERVER_MODEL": "absent:1", "MODEL_SERVER_MODELS_DIR": str(store)})
    assert status == 2
    assert "absent:1: got no manifest in" in errors
    assert {"slow:1", "tiny:1"} <= set(re.findall(r"[a-z]+:1", errors.partition("(it has ")[2]))
