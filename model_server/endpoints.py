"""What is passed on to the engine: the path, the field that must be there, whose API it is, and whether it takes a place."""

from dataclasses import dataclass, replace
from typing import Literal

Api = Literal["openai", "anthropic"]


@dataclass(frozen=True)
class Endpoint:
    path: str
    required: str
    """The one field that every request has beside `model`."""
    takes_place: bool = True
    """Whether the model runs for it, so that it counts among the requests that run at once."""
    api: Api = "openai"
    """Whose shape its errors have."""
    is_cached: bool = False
    """Whether exact answers may be kept."""
    read_by: str | None = None
    """The engine's path that reads such a request and runs no model. What fails there too is the request's fault, not the engine's."""

    @property
    def names_model(self) -> bool:
        """The endpoints of an engine's own need name none."""
        return self.path.startswith("/v1/")


# llama.cpp, tools/server/README.md, as packaged in xllamacpp 2026.10.
_ALL = (
    Endpoint("/v1/chat/completions", "messages", is_cached=True, read_by="/v1/chat/completions/input_tokens"),
    Endpoint("/v1/completions", "prompt", is_cached=True),
    Endpoint("/v1/responses", "input", read_by="/v1/responses/input_tokens"),
    Endpoint("/v1/messages", "messages", api="anthropic", read_by="/v1/messages/count_tokens"),
    Endpoint("/v1/messages/count_tokens", "messages", takes_place=False, api="anthropic"),
    Endpoint("/v1/embeddings", "input"),
    Endpoint("/v1/rerank", "documents"),
    Endpoint("/tokenize", "content", takes_place=False),
    Endpoint("/detokenize", "tokens", takes_place=False),
)
BY_PATH = {endpoint.path: endpoint for endpoint in _ALL}
"""Of llama.cpp."""
OF_VLLM = {
    path: replace(endpoint, read_by=None, required="prompt" if path == "/tokenize" else endpoint.required)
    for path, endpoint in BY_PATH.items()
}
"""vLLM says by itself whose fault an error is, and calls the content a prompt: vllm/entrypoints/serve/tokenize, 0.32.0."""


def api_of(path: str) -> Api:
    """Whose shape an error on this path has, an unknown one too."""
    return "anthropic" if path.startswith("/v1/messages") else "openai"
