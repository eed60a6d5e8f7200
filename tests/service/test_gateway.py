"""The API server in front of a real Ollama: what passes, what is refused, and what users' own clients make of it."""

import itertools
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import ollama as ollama_client
import openai
import pytest

from tests.service import ollama as ollama_process
from tests.service.conftest import KEY, SCRIPT, TOOL, ApiServerFactory, ModelServerFactory
from tests.service.processes import Service, free_port
from tests.service.test_model_server import samples

CONTEXT = 2048
MODELS = ["tiny:1", "tool:1", "loop:1", "embed:1", "rank:1"]
HEADERS = {"Authorization": f"Bearer {KEY}", "Origin": "https://elsewhere.example"}
MESSAGES: list[Any] = [{"role": "user", "content": "Say it."}]
OPEN = {
    "GET /",
    "HEAD /",
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /v1/embeddings",
    "POST /v1/responses",
    "POST /v1/messages",
    "GET /v1/models",
    "GET /v1/models/:model",
    "GET /api/tags",
    "HEAD /api/tags",
    "GET /api/version",
    "HEAD /api/version",
    "GET /api/ps",
    "POST /api/show",
    "POST /api/chat",
    "POST /api/generate",
    "POST /api/embed",
}
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather somewhere",
            "parameters": {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]},
        },
    }
]


def route(url: str, model: str, **fields: object) -> dict[str, object]:
    return {"url": url, "model": model, "engine": "ollama", "context_length": CONTEXT, **fields}


@pytest.fixture
def gateway(api_server: ApiServerFactory, ollama: Service) -> Service:
    return api_server({model: route(ollama.url, model) for model in MODELS})


@pytest.fixture
def openai_api(gateway: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
def ollama_api(gateway: Service) -> Iterator[ollama_client.Client]:
    with ollama_client.Client(gateway.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as client:
        yield client


def test_models_of_the_model_server_complete_and_embed_too(api_server: ApiServerFactory, model_server: ModelServerFactory) -> None:
    api = api_server({name: {"url": model_server(name).url, "model": name} for name in ("tiny:1", "embed:1")})
    with openai.OpenAI(base_url=f"{api.url}/v1", api_key=KEY, max_retries=0, timeout=60) as client:
        assert client.completions.create(model="tiny:1", prompt="Say it.", temperature=0).choices[0].text == SCRIPT
        parts = client.completions.create(model="tiny:1", prompt="Say it.", temperature=0, stream=True)
        assert "".join(part.choices[0].text for part in parts if part.choices) == SCRIPT
        assert len(client.embeddings.create(model="embed:1", input=["a", "b"]).data) == 2
        with pytest.raises(openai.BadRequestError, match="one that was not made for this endpoint"):
            client.embeddings.create(model="tiny:1", input="a")


def post(service: Service, path: str, **body: object) -> httpx.Response:
    return httpx.post(service.url + path, json=body, headers=HEADERS, timeout=60)


def metric(service: Service, name: str, **labels: str) -> float:
    """The value of a sample; 0 while it is not there."""
    wanted = name + "{" + ",".join(f'{key}="{value}"' for key, value in sorted(labels.items())) + "}"
    text = httpx.get(f"{service.metrics_url}/metrics", timeout=10).text
    return next((float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(wanted)), 0.0)


def test_metrics_come_in_the_form_that_is_asked_for(gateway: Service) -> None:
    assert post(gateway, "/v1/chat/completions", model="tiny:1", messages=[{"role": "user", "content": "Say it."}]).status_code == 200
    old, new = samples(gateway.metrics_url)
    assert old == new
    assert {"api_server_requests_total", "api_server_key_tokens_created", "api_server_upstream_out"} <= new


def ollamas_routes() -> list[str]:
    """Every route of Ollama's router, from its own source."""
    source = (ollama_process.module() / "server" / "routes.go").read_text()
    found = re.findall(r'\br\.(GET|POST|PUT|PATCH|DELETE|HEAD)\("(/[^"]*)"', source)
    return [f"{method} {path}" for method, path in found]


def test_only_inference_and_listings_of_ollamas_router_are_open(gateway: Service) -> None:
    routes = ollamas_routes()
    assert {"POST /api/pull", "DELETE /api/delete", "POST /api/blobs/:digest", "POST /api/create"} <= set(routes)
    assert set(routes) >= OPEN
    for entry in routes:
        method, path = entry.split()
        path = path.replace(":model", "tiny:1").replace(":digest", "sha256:" + "0" * 64).replace(":encodedKey", "a")
        response = httpx.request(method, gateway.url + path, headers=HEADERS, json={} if method == "POST" else None, timeout=10)
        if entry in OPEN:
            # An empty body is a bad request of an endpoint that is there.
            assert response.status_code in (200, 400), f"{entry}: {response.status_code}"
            continue
        assert response.status_code in (404, 405), f"{entry}: {response.status_code}"
        if method != "HEAD":
            assert set(response.json()["error"]) == {"message", "type", "code", "param"}, entry


def test_no_spelling_of_an_administrators_path_gets_through(gateway: Service, ollama: Service) -> None:
    plain = [f"/api/{name}" for name in ("pull", "push", "create", "copy", "delete", "blobs/sha256:0")]
    spelled = ["/api/tags/../pull", "/api//pull", "/API/pull", "/api/pull/", "/api/%70ull", "//api/pull", "/v1/models/../../api/pull"]
    with httpx.Client(timeout=10) as client:
        for method, path in itertools.product(("GET", "POST", "PUT", "DELETE"), plain + spelled):
            request = client.build_request(method, gateway.url, headers=HEADERS, json={"model": "tiny:1", "name": "tiny:1"})
            request.url = request.url.copy_with(raw_path=path.encode())
            assert client.send(request).status_code in (404, 405), f"{method} {path}"
    models = httpx.get(f"{ollama.url}/api/tags", timeout=10).json()["models"]
    assert {model["name"] for model in models} == {*MODELS, "slow:1"}


def test_nothing_is_said_without_a_key(gateway: Service) -> None:
    for path in ("/v1/models", "/api/tags", "/api/ps", "/api/version", "/api/pull", "//"):
        assert httpx.get(gateway.url + path, timeout=10).status_code == 401, path


LONG: list[Any] = [{"role": "user", "content": "x" * 3000}, {"role": "assistant", "content": "y"}, {"role": "user", "content": "hi"}]


class TestContext:
    """Prompts of these models have one token a byte; the context has 2048."""

    def test_ollama_itself_cuts_without_a_word(self, ollama: Service) -> None:
        answer = httpx.post(f"{ollama.url}/v1/chat/completions", json={"model": "tiny:1", "messages": LONG}, timeout=60)
        assert answer.status_code == 200
        assert answer.json()["usage"]["prompt_tokens"] < 100

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
    def test_a_conversation_that_does_not_fit_is_refused_with_the_numbers(self, gateway: Service, path: str, stream: bool) -> None:
        response = post(gateway, path, model="tiny:1", messages=LONG, stream=stream)
        assert response.status_code == 400
        error = response.json()["error"]
        message = error if path == "/api/chat" else error["message"]
        assert re.search(r"prompt is too long: 30\d\d tokens > 2048 maximum", message), message
        assert path == "/api/chat" or error["code"] == "context_length_exceeded"

    @pytest.mark.parametrize(("path", "stream"), [("/v1/completions", False), ("/v1/completions", True), ("/api/generate", True)])
    def test_a_plain_prompt_too(self, gateway: Service, path: str, stream: bool) -> None:
        response = post(gateway, path, model="tiny:1", prompt="x" * 3000, stream=stream)
        assert response.status_code == 400
        assert "> 2048 maximum" in response.text

    @pytest.mark.parametrize(
        ("path", "limit"), [("/v1/chat/completions", {"max_tokens": CONTEXT}), ("/v1/chat/completions", {"max_completion_tokens": 32000}),
                            ("/api/chat", {"options": {"num_predict": 100_000}})],
    )  # fmt: skip
    def test_a_limit_beyond_the_context_is_cut_and_not_refused(self, gateway: Service, path: str, limit: dict[str, Any]) -> None:
        """Agents ask for the whole window, also for a bare greeting."""
        for length in (2, 1200):
            message = {"role": "user", "content": "x" * length}
            response = post(gateway, path, model="loop:1", messages=[message], stream=False, **limit)
            assert response.status_code == 200, response.text
            answer = response.json()
            used = answer["usage"]["total_tokens"] if "usage" in answer else answer["prompt_eval_count"] + answer["eval_count"]
            assert CONTEXT // 2 <= used < CONTEXT
            assert (answer["choices"][0]["finish_reason"] if "choices" in answer else answer["done_reason"]) == "length"

    @pytest.mark.parametrize(
        ("path", "limit"), [("/v1/chat/completions", {"max_tokens": 0}), ("/api/chat", {"options": {"num_predict": 0}})]
    )
    def test_a_limit_of_nothing_is_refused(self, gateway: Service, path: str, limit: dict[str, Any]) -> None:
        """Ollama itself writes without a limit then."""
        response = post(gateway, path, model="tiny:1", messages=MESSAGES, stream=False, **limit)
        assert (response.status_code, "got 0, want 1 or more" in response.text) == (400, True)

    @pytest.mark.parametrize("stream", [False, True])
    def test_what_fits_by_count_but_not_by_size_is_answered_whole(self, gateway: Service, stream: bool) -> None:
        """Two bytes a character, and JSON around 40 messages: more bytes than the context has tokens."""
        messages = [{"role": "user" if number % 2 == 0 else "assistant", "content": "x" * 20} for number in range(41)]
        assert len(json.dumps(messages)) > CONTEXT
        body = {"model": "tiny:1", "messages": messages, "stream": stream, "max_tokens": 16, "stream_options": {"include_usage": True}}
        response = post(gateway, "/v1/chat/completions", **(body if stream else {k: v for k, v in body.items() if k != "stream_options"}))
        assert response.status_code == 200, response.text
        document = response.text.split("data: ")[-2] if stream else response.text
        used = json.loads(document)["usage"]["prompt_tokens"]
        whole = sum(len(message["content"]) for message in messages)
        assert whole < used < CONTEXT, "no message was dropped"
        assert metric(gateway, "api_server_counted_prompts_total", model="tiny:1") == 1

    def test_tools_count_and_still_work(self, gateway: Service) -> None:
        many = [{**TOOLS[0], "function": {**TOOLS[0]["function"], "description": "x" * 3000}}]
        assert post(gateway, "/v1/chat/completions", model="tool:1", messages=MESSAGES, tools=many).status_code == 400
        history = [
            *MESSAGES,
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": '{"location": "Boston"}'}}]},
            {"role": "tool", "tool_call_id": "1", "content": "sunny " * 100},
        ]  # fmt: skip
        response = post(gateway, "/v1/chat/completions", model="tool:1", messages=history, tools=TOOLS, max_tokens=200)
        assert response.status_code == 200, response.text
        call = response.json()["choices"][0]["message"]["tool_calls"][0]["function"]
        assert (call["name"], json.loads(call["arguments"])) == (TOOL["name"], TOOL["arguments"])
        assert metric(gateway, "api_server_counted_prompts_total", model="tool:1") == 1

    def test_an_endless_answer_ends_before_the_context_would_shift(self, gateway: Service) -> None:
        answer = post(gateway, "/v1/chat/completions", model="loop:1", messages=MESSAGES).json()
        assert answer["choices"][0]["finish_reason"] == "length"
        assert CONTEXT // 2 <= answer["usage"]["total_tokens"] < CONTEXT


class TestOpenAiClient:
    def test_it_lists_and_finds_models(self, openai_api: openai.OpenAI) -> None:
        assert [model.id for model in openai_api.models.list()] == MODELS
        assert openai_api.models.retrieve("tiny:1").id == "tiny:1"
        with pytest.raises(openai.NotFoundError):
            openai_api.models.retrieve("none:1")

    def test_it_chats_and_completes(self, openai_api: openai.OpenAI) -> None:
        answer = openai_api.chat.completions.create(model="tiny:1", messages=MESSAGES, max_completion_tokens=64)
        assert answer.choices[0].message.content == SCRIPT
        assert answer.usage is not None
        assert answer.usage.completion_tokens > 0
        assert openai_api.completions.create(model="tiny:1", prompt="Say it.", max_tokens=64).choices[0].text == SCRIPT
        short = openai_api.chat.completions.create(model="tiny:1", messages=MESSAGES, max_completion_tokens=1)
        assert short.choices[0].finish_reason == "length"

    @pytest.mark.parametrize("wants_usage", [False, True])
    def test_a_stream_has_usage_only_for_who_asks(self, openai_api: openai.OpenAI, gateway: Service, wants_usage: bool) -> None:
        options: Any = {"stream_options": {"include_usage": True}} if wants_usage else {}
        chunks = list(openai_api.chat.completions.create(model="tiny:1", messages=MESSAGES, stream=True, max_tokens=64, **options))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == SCRIPT
        assert any(chunk.usage for chunk in chunks) is wants_usage
        assert all(chunk.choices for chunk in chunks) is not wants_usage
        assert metric(gateway, "api_server_completion_tokens_total", model="tiny:1") > 0
        assert metric(gateway, "api_server_prompt_tokens_total", model="tiny:1") > 0
        assert metric(gateway, "api_server_time_to_first_token_seconds_count", model="tiny:1") == 1

    def test_it_calls_tools_in_a_stream_and_without(self, openai_api: openai.OpenAI) -> None:
        answer = openai_api.chat.completions.create(model="tool:1", messages=MESSAGES, tools=TOOLS)
        calls = answer.choices[0].message.tool_calls or []
        assert [call.function.name for call in calls if call.type == "function"] == ["get_weather"]
        names = [
            call.function.name
            for chunk in openai_api.chat.completions.create(model="tool:1", messages=MESSAGES, tools=TOOLS, stream=True)
            for choice in chunk.choices
            for call in choice.delta.tool_calls or []
            if call.function
        ]
        assert names == ["get_weather"]

    def test_it_embeds_and_long_inputs_are_refused(self, openai_api: openai.OpenAI) -> None:
        found = openai_api.embeddings.create(model="embed:1", input=["Say it.", "Say more."])
        assert len(found.data) == 2
        assert len(found.data[0].embedding) > 100
        assert found.data[0].embedding != found.data[1].embedding
        many = openai_api.embeddings.create(model="embed:1", input=["\n\n" * 600 + "x" * 900] * 2)
        assert len(many.data) == 2, "inputs fit one by one, not together"
        with pytest.raises(openai.BadRequestError, match="prompt is too long: more than 2048 tokens") as caught:
            openai_api.embeddings.create(model="embed:1", input=["short", "x" * 3000])
        assert caught.value.code == "context_length_exceeded"

    def test_its_errors_have_their_types(self, openai_api: openai.OpenAI, gateway: Service) -> None:
        with pytest.raises(openai.NotFoundError, match="want one of tiny:1"):
            openai_api.chat.completions.create(model="none", messages=MESSAGES)
        with pytest.raises(openai.BadRequestError) as caught:
            openai_api.chat.completions.create(model="tiny:1", messages=LONG)
        assert caught.value.code == "context_length_exceeded"
        stranger = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="a-wrong-key-for-tests", max_retries=0)
        with pytest.raises(openai.AuthenticationError), stranger:
            stranger.models.list()


class TestOllamaClient:
    def test_it_lists_shows_and_looks(self, ollama_api: ollama_client.Client, ollama: Service) -> None:
        ollama_process.load(ollama, "tiny:1")
        assert {model.model for model in ollama_api.list().models} == set(MODELS)
        assert "tools" in (ollama_api.show("tool:1").capabilities or [])
        deadline = time.monotonic() + 10
        while "tiny:1" not in {model.model for model in ollama_api.ps().models}:
            assert time.monotonic() < deadline

    def test_it_chats_streams_and_generates(self, ollama_api: ollama_client.Client) -> None:
        assert ollama_api.chat("tiny:1", MESSAGES).message.content == SCRIPT
        parts = list(ollama_api.chat("tiny:1", MESSAGES, stream=True))
        assert "".join(part.message.content or "" for part in parts) == SCRIPT
        assert parts[-1].done
        assert ollama_api.generate("tiny:1", "Say it.").response == SCRIPT
        assert ollama_api.chat("tool:1", MESSAGES, tools=TOOLS).message.tool_calls
        assert len(ollama_api.embed("embed:1", "Say it.").embeddings) == 1

    def test_its_errors_can_be_read(self, ollama_api: ollama_client.Client) -> None:
        with pytest.raises(ollama_client.ResponseError, match="want one of tiny:1") as caught:
            ollama_api.chat("none", MESSAGES)
        assert caught.value.status_code == 404
        with pytest.raises(ollama_client.ResponseError, match="> 2048 maximum"):
            list(ollama_api.chat("tiny:1", LONG, stream=True))
        with pytest.raises(ollama_client.ResponseError) as caught:
            ollama_api.pull("tiny:1")
        assert caught.value.status_code == 404


class TestHolding:
    """No server has the model yet."""

    def start(self, api_server: ApiServerFactory, port: int, **env: str) -> Service:
        return api_server({"tiny:1": route(f"http://127.0.0.1:{port}", "tiny:1")}, **env)

    @pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
    def test_a_stream_and_a_plain_request_wait_and_are_answered(
        self, api_server: ApiServerFactory, ollama_program: Path, store: Path, tmp_path: Path, path: str
    ) -> None:
        port = free_port()
        api = self.start(api_server, port, HOLD_S="60", SILENCE_S="2")
        answers: list[httpx.Response] = []

        def ask(stream: bool) -> None:
            answers.append(post(api, path, model="tiny:1", messages=MESSAGES, stream=stream))

        threads = [threading.Thread(target=ask, args=(stream,)) for stream in (False, True)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 20
        while metric(api, "api_server_waiting_requests", model="tiny:1") != 2:
            assert time.monotonic() < deadline
        assert demand(api)["waiting"] == 2
        # Longer than to the first sign of life.
        time.sleep(2.5)
        with ollama_process.running(ollama_program, store, tmp_path, port):
            for thread in threads:
                thread.join(60)
        assert [answer.status_code for answer in answers] == [200, 200]
        assert all("Hello" in answer.text for answer in answers)
        streamed = [answer for answer in answers if "event-stream" in answer.headers["content-type"]]
        assert [answer.text.startswith(": working\n\n") for answer in streamed] == [True] * len(streamed)
        assert len(streamed) == (path == "/v1/chat/completions")
        assert metric(api, "api_server_waiting_requests", model="tiny:1") == 0

    def test_openais_client_reads_a_stream_that_was_held(
        self, api_server: ApiServerFactory, ollama_program: Path, store: Path, tmp_path: Path
    ) -> None:
        port = free_port()
        api = self.start(api_server, port, HOLD_S="60", SILENCE_S="2")
        with ExitStack() as stack:
            client = stack.enter_context(openai.OpenAI(base_url=f"{api.url}/v1", api_key=KEY, max_retries=0, timeout=60))
            # The first byte is the sign of life, so this returns while no server is there.
            chunks = client.chat.completions.create(model="tiny:1", messages=MESSAGES, stream=True)
            stack.enter_context(ollama_process.running(ollama_program, store, tmp_path, port))
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == SCRIPT

    def test_waiting_has_an_end_and_a_bound(self, api_server: ApiServerFactory) -> None:
        api = self.start(api_server, free_port(), HOLD_S="3", MAX_WAITING="1")
        answers: list[httpx.Response] = []
        first = threading.Thread(target=lambda: answers.append(post(api, "/v1/chat/completions", model="tiny:1", messages=MESSAGES)))
        first.start()
        deadline = time.monotonic() + 10
        while demand(api)["waiting"] != 1:
            assert time.monotonic() < deadline
        second = post(api, "/v1/chat/completions", model="tiny:1", messages=MESSAGES)
        first.join()
        assert (second.status_code, second.headers["retry-after"]) == (429, "10")
        assert (answers[0].status_code, answers[0].headers["retry-after"]) == (503, "10")
        assert "got no server within 3 s" in answers[0].json()["error"]["message"]

    def test_a_client_that_leaves_waits_no_more(self, api_server: ApiServerFactory) -> None:
        api = self.start(api_server, free_port(), HOLD_S="60")
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{api.url}/v1/chat/completions", json={"model": "tiny:1", "messages": MESSAGES}, headers=HEADERS, timeout=1)
        deadline = time.monotonic() + 10
        while demand(api)["waiting"]:
            assert time.monotonic() < deadline


def demand(service: Service) -> dict[str, Any]:
    return httpx.get(f"{service.metrics_url}/demand", timeout=10).json()
