"""Holds a conversation with tools as a client of others does. Run by the Python that has these clients, with what to ask on standard input;
prints what each client made of each answer."""
# pyright: reportMissingImports=false

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import litellm
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI

Said = tuple[list[Any], str]
"""Calls of tools as name and arguments, and text."""
NAME, SCHEMA = "get_weather", {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]}
TURNS = 3


def by_anthropic(url: str, key: str, model: str, stream: bool) -> Iterator[Said]:
    client = anthropic.Anthropic(base_url=url, api_key=key, max_retries=0, timeout=60)
    turns: list[Any] = [{"role": "user", "content": "How is it?"}]
    given: dict[str, Any] = {"model": model, "max_tokens": 64, "tools": [{"name": NAME, "description": "Weather", "input_schema": SCHEMA}]}
    for _ in range(TURNS):
        if stream:
            with client.messages.stream(messages=turns, **given) as events:
                answer = events.get_final_message()
        else:
            answer = client.messages.create(messages=turns, **given)
        calls = [block for block in answer.content if block.type == "tool_use"]
        yield [(call.name, call.input) for call in calls], "".join(block.text for block in answer.content if block.type == "text")
        results = [{"type": "tool_result", "tool_use_id": call.id, "content": "sunny"} for call in calls]
        turns += [{"role": "assistant", "content": answer.content}, {"role": "user", "content": results or "Go on."}]
    count = client.messages.count_tokens(model=model, messages=turns[:1])
    assert count.input_tokens > 0


def by_langchain(url: str, key: str, model: str, stream: bool) -> Iterator[Said]:
    tool = {"type": "function", "function": {"name": NAME, "description": "Weather", "parameters": SCHEMA}}
    chat = ChatOpenAI(base_url=f"{url}/v1", api_key=key, model=model, max_retries=0, timeout=60).bind_tools([tool])
    turns: list[Any] = [HumanMessage("How is it?")]
    for _ in range(TURNS):
        if stream:
            first, *rest = chat.stream(turns)
            answer = sum(rest, first)
        else:
            answer = chat.invoke(turns)
        yield [(call["name"], call["args"]) for call in answer.tool_calls], answer.text
        results = [ToolMessage("sunny", tool_call_id=call["id"]) for call in answer.tool_calls]
        turns += [answer, *(results or [HumanMessage("Go on.")])]


def by_litellm(url: str, key: str, model: str, stream: bool) -> Iterator[Said]:
    tool = {"type": "function", "function": {"name": NAME, "description": "Weather", "parameters": SCHEMA}}
    turns: list[Any] = [{"role": "user", "content": "How is it?"}]
    for _ in range(TURNS):
        given: Any = {"model": f"openai/{model}", "api_base": f"{url}/v1", "api_key": key, "num_retries": 0, "timeout": 60}
        answer: Any = litellm.completion(messages=turns, tools=[tool], stream=stream, **given)
        if stream:
            answer = litellm.stream_chunk_builder(list(answer), messages=turns)
        message = answer.choices[0].message
        calls = message.tool_calls or []
        yield [(call.function.name, json.loads(call.function.arguments)) for call in calls], message.content or ""
        results: list[Any] = [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in calls]
        turns += [message.model_dump(), *(results or [{"role": "user", "content": "Go on."}])]


CLIENTS: dict[str, Callable[[str, str, str, bool], Iterator[Said]]] = {
    "anthropic": by_anthropic,
    "langchain": by_langchain,
    "litellm": by_litellm,
}

if __name__ == "__main__":
    asked = json.loads(sys.stdin.read())
    found = [
        [client, model, stream, list(CLIENTS[client](asked["url"], asked["key"], model, stream))]
        for client in CLIENTS
        for model in asked["models"]
        for stream in (False, True)
    ]
    print(json.dumps(found))
