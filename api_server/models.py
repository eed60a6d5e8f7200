"""One typed model for each endpoint and kind of server: the fields that go on, by exact name, and what they may be.

What is within messages and tools has tables of its own (history.py); an Any is a matter of the engine, which refuses it itself.
Sources: ollama v0.32.15, openai/openai.go and api/types.go; OpenAI's API reference; llama.cpp, tools/server/README.md.
"""

import re
from typing import Annotated, Any, Literal

import msgspec

from api_server import agent_models, errors
from api_server.paths import CHAT, COMPLETIONS, EMBEDDINGS, INFERENCE, NATIVE_CHAT, NATIVE_EMBED, NATIVE_GENERATE, Payload

Engine = Literal["openai", "ollama"]
Number = int | float
_MESSAGE = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"enum": ["system", "user", "assistant", "tool", "developer"]},
        "content": {"type": ["string", "array", "null"]},
    },
}
Messages = Annotated[list[Any], msgspec.Meta(extra_json_schema={"items": _MESSAGE})]
"""history.py checks them, and says where one is wrong; the schema is for readers of the document."""
_WRONG = re.compile(r"Expected `(.+?)`, got `(.+?)`(?: - at `\$\.?(.*)`)?|.*required field `(.+?)`")


class _Request(msgspec.Struct, kw_only=True):
    model: str


class _Answer(_Request, kw_only=True):
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    max_tokens: Number | None = None
    seed: Number | None = None
    stop: str | list[str] | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    frequency_penalty: Number | None = None
    presence_penalty: Number | None = None


class _Sampling(_Answer, kw_only=True):
    """What a server of OpenAI's API takes beside: llama.cpp's names, none of which belongs to the loaded model."""

    max_completion_tokens: Number | None = None
    n: int | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    logit_bias: Any = None
    top_k: Number | None = None
    min_p: Number | None = None
    typical_p: Number | None = None
    xtc_probability: Number | None = None
    xtc_threshold: Number | None = None
    mirostat: Number | None = None
    mirostat_tau: Number | None = None
    mirostat_eta: Number | None = None
    dynatemp_range: Number | None = None
    dynatemp_exponent: Number | None = None
    repeat_penalty: Number | None = None
    repeat_last_n: Number | None = None
    dry_multiplier: Number | None = None
    dry_base: Number | None = None
    dry_allowed_length: Number | None = None
    samplers: Any = None
    min_keep: Number | None = None
    ignore_eos: bool | None = None
    json_schema: Any = None
    n_probs: Number | None = None
    n_predict: Number | None = None
    cache_prompt: bool | None = None
    return_tokens: bool | None = None
    timings_per_token: bool | None = None
    reasoning_format: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class OllamaChat(_Answer, kw_only=True):
    messages: Messages
    tools: list[Any] | None = None
    response_format: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class Chat(_Sampling, kw_only=True):
    messages: Messages
    tools: list[Any] | None = None
    response_format: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None


class OllamaCompletion(_Answer, kw_only=True):
    prompt: str | None = None
    suffix: str | None = None
    logprobs: int | None = None


class Completion(_Sampling, kw_only=True):
    prompt: str | list[Any] | None = None
    suffix: str | None = None
    logprobs: int | None = None
    best_of: int | None = None
    echo: bool | None = None


class OllamaEmbedding(_Request, kw_only=True):
    input: str | list[Any]
    dimensions: int | None = None
    encoding_format: str | None = None


class Embedding(OllamaEmbedding, kw_only=True):
    user: str | None = None


class _Native(_Request, kw_only=True):
    stream: bool | None = None
    format: str | dict[str, Any] | None = None
    options: dict[str, Any] | None = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class NativeChat(_Native, kw_only=True):
    messages: Messages = msgspec.field(default_factory=list)
    tools: list[Any] | None = None


class NativeGenerate(_Native, kw_only=True):
    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    context: list[int] | None = None
    raw: bool | None = None
    images: list[str] | None = None


class NativeEmbed(_Request, kw_only=True):
    input: str | list[Any]
    dimensions: int | None = None
    options: dict[str, Any] | None = None


MODELS: dict[tuple[str, Engine], type[msgspec.Struct]] = {
    (CHAT, "ollama"): OllamaChat,
    (COMPLETIONS, "ollama"): OllamaCompletion,
    (EMBEDDINGS, "ollama"): OllamaEmbedding,
    (NATIVE_CHAT, "ollama"): NativeChat,
    (NATIVE_GENERATE, "ollama"): NativeGenerate,
    (NATIVE_EMBED, "ollama"): NativeEmbed,
    (CHAT, "openai"): Chat,
    (COMPLETIONS, "openai"): Completion,
    (EMBEDDINGS, "openai"): Embedding,
    **{(path, "ollama"): model for path, model in agent_models.OF_OLLAMA.items()},
    **{(path, "openai"): model for path, model in agent_models.OF_OTHERS.items()},
}


def endpoints(engine: Engine) -> list[str]:
    """The paths that this kind of server has, or that are answered here for it."""
    return [path for path in INFERENCE if (path, engine) in MODELS]


def check(path: str, engine: Engine, payload: Payload) -> None:
    """Raises ApiError 400 that names the field that is of another type."""
    try:
        msgspec.convert(payload, MODELS[path, engine])
    except msgspec.ValidationError as error:
        found = _WRONG.match(str(error))
        want, got, where, missing = found.groups() if found else ("what the API says", str(error), "body", None)
        if missing:
            raise errors.bad_request(f"{missing}: got nothing, want a value; add it", missing) from None
        raise errors.bad_request(f"{where}: got {got}, want {want.replace('|', 'or')}; correct it", where) from None
