"""The typed models of Responses, Messages and rerank; models.py has the others, and says what the fields are for.

Sources: ollama v0.32.15, openai/responses.go and anthropic/anthropic.go; OpenAI's and Anthropic's API references; llama.cpp,
tools/server/README.md.
"""

from typing import Any

import msgspec

from api_server.paths import COUNT_TOKENS, MESSAGES, RERANK, RESPONSES

Number = int | float
Object = dict[str, Any]


class _Request(msgspec.Struct, kw_only=True):
    model: str


class OllamaResponse(_Request, kw_only=True):
    input: str | list[Any]
    instructions: str | None = None
    max_output_tokens: Number | None = None
    stream: bool | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    text: Object | None = None
    reasoning: Object | None = None
    tools: list[Any] | None = None


class Response(OllamaResponse, kw_only=True):
    tool_choice: str | Object | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: Object | None = None


class _Prompt(_Request, kw_only=True):
    """What of a message's request is read before the model says a word."""

    messages: list[Any]
    system: str | list[Any] | None = None
    tools: list[Any] | None = None
    thinking: Object | None = None


class _Message(_Prompt, kw_only=True):
    max_tokens: Number | None = None
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: Number | None = None
    top_k: Number | None = None
    top_p: Number | None = None


class OllamaMessage(_Message, kw_only=True):
    output_config: Object | None = None


class Message(_Message, kw_only=True):
    tool_choice: Object | None = None
    chat_template_kwargs: Object | None = None


class OllamaCount(_Prompt, kw_only=True):
    """Answered here; Ollama has no such endpoint."""

    output_config: Object | None = None


class Count(_Prompt, kw_only=True):
    chat_template_kwargs: Object | None = None


class Rerank(_Request, kw_only=True):
    query: str
    documents: list[Any]
    top_n: int | None = None


OF_OLLAMA: dict[str, type[_Request]] = {RESPONSES: OllamaResponse, MESSAGES: OllamaMessage, COUNT_TOKENS: OllamaCount}
OF_OTHERS: dict[str, type[_Request]] = {RESPONSES: Response, MESSAGES: Message, COUNT_TOKENS: Count, RERANK: Rerank}
