"""What a model can do, asked from its server once: to think, to call tools, to see.

Clients ask every model alike. OpenHands sends `reasoning_effort` by default, and Ollama refuses it for a model that cannot think.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import aiohttp

from api_server import errors
from api_server.fields import THINKING
from api_server.paths import Payload
from api_server.reading import document

_TIMEOUT = aiohttp.ClientTimeout(total=2)
"""For one question. A request waits for it at most once, and goes on without the answer."""


@dataclass(frozen=True)
class Abilities:
    """None: the server did not say, so nothing is refused or dropped."""

    known: frozenset[str] | None = None
    """`thinking`, `tools`, `vision`, `audio`, … in Ollama's words."""
    context_length: int = 0
    """Tokens of one request; 0: not said."""
    version: str = ""
    """Of the weights and of what runs them; empty: not said."""

    def lacks(self, name: str) -> bool:
        """Whether the server said what the model can do, and this is not part of it."""
        return self.known is not None and name not in self.known


UNKNOWN = Abilities()


async def ask(session: aiohttp.ClientSession, url: str, engine: Literal["openai", "ollama"], name: str, digest: str = "") -> Abilities:
    """Ollama says it at /api/show; our model server says it in its list of models. Raises one of reading.LATE_OR_STRANGE.

    `digest`: the model's in the store of an Ollama.
    """
    if engine == "ollama":
        async with session.post(f"{url}/api/show", json={"model": name}, timeout=_TIMEOUT, allow_redirects=False) as response:
            found = _abilities(await document(response))
        return replace(found, version=f"{await _ollama(session, url)} {digest}" if digest else "")
    async with session.get(f"{url}/v1/models", timeout=_TIMEOUT, allow_redirects=False) as response:
        entries = (await document(response))["data"]
    return _abilities(next((entry for entry in entries if entry["id"] == name), {}))


async def _ollama(session: aiohttp.ClientSession, url: str) -> str:
    async with session.get(f"{url}/api/version", timeout=_TIMEOUT, allow_redirects=False) as response:
        return f"ollama {(await document(response))['version']}"


def _abilities(entry: dict[str, Any]) -> Abilities:
    """From an answer of /api/show, or an entry of a list of models."""
    named, length = entry.get("capabilities"), entry.get("context_length") or entry.get("max_model_len")
    known = frozenset(each for each in named if isinstance(each, str)) if isinstance(named, list) and named else None
    version = entry.get("version")
    return Abilities(known, length if isinstance(length, int) else 0, version if isinstance(version, str) else "")


def adapted(payload: Payload, abilities: Abilities, model: str, media: str) -> tuple[Payload, list[str]]:
    """The payload as the model can take it, and the names of the fields that it lost. Raises ApiError 400 on tools and images that
    the model cannot take: to leave them out would change the answer's meaning. `media`: the field with an image or a sound; empty: none."""
    if payload.get("tools") and abilities.lacks("tools"):
        raise errors.no_tools(model)
    if media and abilities.lacks("vision") and abilities.lacks("audio"):
        raise errors.no_media(model, media)
    if not abilities.lacks("thinking"):
        return payload, []
    dropped = [name for name in payload if name in THINKING]
    return {name: value for name, value in payload.items() if name not in THINKING}, dropped
