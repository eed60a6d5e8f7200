"""What every engine does behind the model server, whichever it is: one list of checks, on a real model.

Each check gets a server of its own choosing through `start`, since some of them end it.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
from jsonschema import Draft202012Validator

from tests.service.processes import Service

CONTEXT = 1024
QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one short sentence."}]
TALE = [{"role": "user", "content": "Tell a very long story of a sailor who sails around the world."}]
CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}, "days": {"type": "integer", "enum": [1, 2, 3]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Engine:
    """A model server on an engine."""

    service: Service
    model: str

    def post(self, path: str, **fields: Any) -> httpx.Response:
        return httpx.post(f"{self.service.url}{path}", json={"model": self.model, **fields}, timeout=120)

    def chat(self, messages: Any = QUESTION, **fields: Any) -> dict[str, Any]:
        answer = self.post("/v1/chat/completions", messages=messages, **{"temperature": 0, "max_tokens": 24, **fields})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def text(self, **fields: Any) -> str:
        return str(self.chat(**fields)["choices"][0]["message"]["content"])

    def metric(self, name: str) -> float:
        lines = httpx.get(f"{self.service.url}/metrics", timeout=10).text.splitlines()
        found = [float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)]
        assert found, name
        return sum(found)


def answers(engine: Engine) -> None:
    found = engine.chat()
    assert "Paris" in found["choices"][0]["message"]["content"]
    assert found["choices"][0]["finish_reason"] == "stop"
    assert found["usage"]["prompt_tokens"] > 10
    assert found["usage"]["completion_tokens"] > 3


def streams(engine: Engine) -> None:
    """The same text in pieces, the end, and the usage where it is asked for."""
    body = {"model": engine.model, "messages": QUESTION, "temperature": 0, "max_tokens": 24, "stream": True}
    body["stream_options"] = {"include_usage": True}
    with httpx.stream("POST", f"{engine.service.url}/v1/chat/completions", json=body, timeout=120) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    pieces = [choice["delta"].get("content") or "" for event in events for choice in event["choices"]]
    assert len([piece for piece in pieces if piece]) > 2
    assert "".join(pieces) == engine.text()
    assert [event["usage"]["completion_tokens"] for event in events if event.get("usage")][-1] > 3


def calls_tools(engine: Engine, name: str = "weather", parameters: dict[str, Any] = CITY) -> None:
    """Of a model whose template knows tools: the call has the form that the tool wants."""
    tools = [{"type": "function", "function": {"name": name, "strict": True, "parameters": parameters}}]
    asked = [{"role": "user", "content": "What will the weather be in Paris tomorrow?"}]
    found = engine.chat(messages=asked, tools=tools, tool_choice="required", max_tokens=96)["choices"][0]
    (call,) = found["message"]["tool_calls"]
    assert call["function"]["name"] == name
    Draft202012Validator(parameters).validate(json.loads(call["function"]["arguments"]))
    assert found["finish_reason"] == "tool_calls"


def keeps_to_a_schema(engine: Engine) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "place", "strict": True, "schema": CITY}}
    found = json.loads(engine.text(response_format=form, max_tokens=96))
    assert found.keys() == {"city", "days"}
    assert found["city"] in ("Paris", "Rome")


def stops(engine: Engine) -> None:
    found = engine.chat(stop=["Paris"])
    assert "Paris" not in found["choices"][0]["message"]["content"]
    assert found["choices"][0]["finish_reason"] == "stop"


def repeats_by_its_seed(engine: Engine) -> None:
    """The same seed is the same text, and others differ."""
    texts = [engine.text(messages=TALE, temperature=1.5, seed=seed, max_tokens=16) for seed in (7, 7, 8, 9)]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


def says_probabilities(engine: Engine) -> None:
    found = engine.chat(logprobs=True, top_logprobs=2, max_tokens=4)["choices"][0]["logprobs"]["content"]
    assert len(found) == 4
    for token in found:
        assert token["logprob"] <= 1e-6
        assert len(token["top_logprobs"]) == 2
        assert token["top_logprobs"][0]["logprob"] >= token["top_logprobs"][1]["logprob"]
        assert abs(token["top_logprobs"][0]["logprob"] - token["logprob"]) < 1e-3, "temperature 0 takes the likeliest"


def completes_and_answers_other_apis(engine: Engine) -> None:
    assert engine.post("/v1/completions", prompt="The capital of France is", max_tokens=8, temperature=0).json()["choices"][0]["text"]
    said = engine.post("/v1/messages", messages=QUESTION, max_tokens=24, temperature=0).json()
    assert "Paris" in said["content"][0]["text"]
    read = said["usage"]["input_tokens"] + (said["usage"].get("cache_read_input_tokens") or 0)
    assert engine.post("/v1/messages/count_tokens", messages=QUESTION).json()["input_tokens"] == read
    found = engine.post("/v1/responses", input=QUESTION[0]["content"], max_output_tokens=24, temperature=0)
    assert found.status_code == 200, found.text
    assert "Paris" in json.dumps(found.json()["output"])


def refuses_embeddings_of_a_model_that_makes_none(engine: Engine) -> None:
    refused = engine.post("/v1/embeddings", input="a text")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unsupported_endpoint")


def refuses_what_does_not_fit_with_numbers(engine: Engine) -> None:
    long = [{"role": "user", "content": "word " * (2 * CONTEXT)}]
    for path in ("/v1/chat/completions", "/v1/messages"):
        refused = engine.post(path, messages=long, max_tokens=8)
        assert refused.status_code == 400, refused.text
        message = refused.json()["error"]["message"]
        got, limit = (int("".join(filter(str.isdigit, part))) for part in message.partition(".")[0].split(">"))
        assert (limit, got > limit) == (CONTEXT, True), message
    assert "Paris" in engine.text(), "and goes on"


def says_whose_fault_it_is(engine: Engine) -> None:
    for wrong in ({"temperature": "hot"}, {"max_tokens": "many"}):
        refused = engine.post("/v1/chat/completions", messages=QUESTION, **wrong)
        assert 400 <= refused.status_code < 500, refused.text
        assert refused.json()["error"]["type"] == "invalid_request_error"


def counts_tokens(engine: Engine) -> None:
    before = [engine.metric(f"model_server_{name}_total") for name in ("prompt_tokens", "reused_prompt_tokens", "generated_tokens")]
    used = [engine.chat(messages=TALE, max_tokens=12)["usage"] for _ in range(2)]
    deadline = time.monotonic() + 5
    while True:
        after = [engine.metric(f"model_server_{name}_total") for name in ("prompt_tokens", "reused_prompt_tokens", "generated_tokens")]
        read, reused, written = (now - then for now, then in zip(after, before, strict=True))
        if (read + reused, written) == (sum(u["prompt_tokens"] for u in used), sum(u["completion_tokens"] for u in used)):
            return
        assert time.monotonic() < deadline, (used, before, after)
        time.sleep(0.1)


def frees_what_a_client_leaves(engine: Engine) -> None:
    """With one place and no queue the next request is let in when the engine is free: within a second, for a stream and for a whole
    answer."""
    body: dict[str, Any] = {"model": engine.model, "messages": TALE, "max_tokens": CONTEXT - 200, "ignore_eos": True, "temperature": 1}
    with httpx.stream("POST", f"{engine.service.url}/v1/chat/completions", json={**body, "stream": True}, timeout=60) as response:
        lines = response.iter_lines()
        assert next(lines)
        assert engine.post("/v1/chat/completions", messages=QUESTION, max_tokens=1).status_code == 503
    _let_in_within_a_second(engine)
    try:
        httpx.post(f"{engine.service.url}/v1/chat/completions", json=body, timeout=1.5)
        raise AssertionError("a whole answer came at once")
    except httpx.ReadTimeout:
        pass
    _let_in_within_a_second(engine)


def _let_in_within_a_second(engine: Engine) -> None:
    left = time.monotonic()
    while engine.post("/v1/chat/completions", messages=QUESTION, max_tokens=1).status_code != 200:
        assert time.monotonic() < left + 1
        time.sleep(0.02)


def finishes_what_runs_when_it_is_told_to_end(engine: Engine) -> None:
    body = {"model": engine.model, "messages": TALE, "max_tokens": 64, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{engine.service.url}/v1/chat/completions", json=body, timeout=60) as response:
        lines = response.iter_lines()
        assert next(lines)
        engine.service.process.terminate()
        told = time.monotonic()
        rest = list(lines)
    assert rest[-1] == "data: [DONE]" or "data: [DONE]" in rest
    assert engine.service.process.wait(timeout=60) == 0
    assert time.monotonic() - told < 60


ON_ONE: Mapping[str, Callable[[Engine], None]] = {
    check.__name__: check
    for check in (
        answers,
        streams,
        keeps_to_a_schema,
        stops,
        repeats_by_its_seed,
        says_probabilities,
        completes_and_answers_other_apis,
        refuses_embeddings_of_a_model_that_makes_none,
        refuses_what_does_not_fit_with_numbers,
        says_whose_fault_it_is,
        counts_tokens,
        frees_what_a_client_leaves,
    )
}
"""Checks that one server goes through, one after the other; it has one place and no queue."""
ONE_PLACE = {"CONTEXT_LENGTH": str(CONTEXT), "PARALLEL": "1", "MAX_QUEUE": "0"}
LAST = finishes_what_runs_when_it_is_told_to_end
