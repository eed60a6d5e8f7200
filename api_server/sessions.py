"""Which conversation a request belongs to: by an id that its agent sends, or by the messages that it repeats."""

import hashlib
import secrets
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import msgspec

from api_server.paths import Payload, encode

HEADERS = (
    *("x-session-id", "x-litellm-session-id", "x-claude-code-session-id", "x-session-affinity", "x-opencode-session"),
    *("thread-id", "session-id", "session_id", "x-correlation-id"),
)
"""Headers that are the same for all requests of a conversation, the surest first. `x-litellm-session-id` is OpenHands', `thread-id` is
Codex', the others are named by their agents and by docs/gateway.md. None that is made anew for each request is among them."""
_AGENT, _AGENTS_PARENT = "x-claude-code-agent-id", "x-claude-code-parent-agent-id"
"""In requests of an agent that Claude Code's own agent has started, all of which have the id of its session; the second one, where another
such agent has started it."""
_PARENTS = ("x-parent-session-id", "x-codex-parent-thread-id")
"""Opencode's and Codex', where an agent was started by another one."""
_PROMPT_BYTES = 1024
"""Of a prompt that is one text: its beginning stands for the conversation."""
_NAME_BYTES = 16


class Said(NamedTuple):
    """What headers say of a conversation."""

    id: str = ""
    parent: str = ""
    """The id of the one whose agent has started this one's, and waits for it."""


class Turn(msgspec.Struct, frozen=True):
    """One request as a part of a conversation. Names are digests, so that an id of any length takes as much memory as every other."""

    known: tuple[bytes, ...] = ()
    """Names under which the conversation may be known, the one that says most of it first."""
    own: bytes = b""
    """The name under which it is known from this request on. Empty: it is no part of a conversation."""
    size: int = 0
    """Bytes of the request, which are nearly all prompt."""
    spot: bytes = b""
    """Where rendezvous hashing puts the conversation, in every process alike. Empty: where `own` does."""
    owner: bytes = b""
    """The name of its key."""
    goes_on: bool = False
    """Whether it repeats the messages before it, as the next one will repeat it. A single text does not."""
    parent: bytes = b""
    """The name of the conversation whose agent waits for this one's."""


class Sessions:
    """Names conversations, so that nobody else can."""

    def __init__(self, more_headers: Collection[str] = (), secret: bytes = b"") -> None:
        """`secret`: what processes have in common that are to give a conversation the same name."""
        self.headers = (*more_headers, *HEADERS)
        # Nobody can work out a name, and so none that another key's conversation has.
        self._secret = hashlib.blake2b(secret or secrets.token_bytes(32), digest_size=32, person=b"sessions").digest()

    def said(self, headers: Mapping[str, str]) -> Said:
        """What a request's headers say."""
        session = _first(headers, self.headers)
        if agent := headers.get(_AGENT):
            parent = headers.get(_AGENTS_PARENT)
            return Said(f"{session}\0{agent}", f"{session}\0{parent}" if parent else session)
        return Said(session, _first(headers, _PARENTS))

    def turn(self, owner: bytes, said: Said, model: str, payload: Payload, kept: Payload, size: int) -> Turn:
        """The part that a request is. `owner`: the name of its key, so that no key reaches what another one's session is bound to. `said`:
        by its headers. `payload`: the request as it came, of `size` bytes; `kept`: what of it goes on."""
        said_id = said.id or _in_body(payload)
        whose = b"\0".join((owner, model.encode(errors="surrogateescape")))
        by = _by(said_id) if said_id else b"\0messages"
        start = hashlib.blake2b(whose + by, digest_size=_NAME_BYTES, key=self._secret)
        names = [start.digest()] if said_id else _chain(start, kept)
        if not names:
            return Turn(size=size)
        spot = hashlib.blake2b(whose + (by if said_id else beginning(payload)), digest_size=8).digest()
        goes_on = isinstance(kept.get("messages") or kept.get("input"), list)
        parent = b""
        if said.parent not in ("", said_id):
            parent = hashlib.blake2b(whose + _by(said.parent), digest_size=_NAME_BYTES, key=self._secret).digest()
        return Turn(tuple(reversed(names)), names[-1], size, spot, owner, goes_on, parent)


def _first(headers: Mapping[str, str], names: Collection[str]) -> str:
    return next((headers[name] for name in names if headers.get(name)), "")


def _by(said_id: str) -> bytes:
    return b"\0id" + said_id.encode(errors="surrogateescape")


def beginning(payload: Payload) -> bytes:
    """Of a conversation, on every gateway the same: its messages or items up to the first of the user, or the beginning of its text."""
    turns = payload.get("messages") or payload.get("input")
    if not isinstance(turns, list):
        return str(turns or payload.get("prompt") or payload.get("query"))[:_PROMPT_BYTES].encode(errors="replace")
    users = (index for index, turn in enumerate(turns) if isinstance(turn, dict) and turn.get("role") == "user")
    return hashlib.blake2b(encode(turns[: next(users, 0) + 1]), digest_size=8).digest()


def _in_body(payload: Payload) -> str:
    metadata = payload.get("metadata")
    found = (payload.get("prompt_cache_key"), metadata.get("session_id") if isinstance(metadata, dict) else None)
    return next((each for each in found if isinstance(each, str) and each), "")


def _chain(start: "hashlib.blake2b", kept: Payload) -> list[bytes]:
    """A name for the conversation up to each message: the next request repeats all of this one's, and has more behind them. After an agent
    has compacted its history, no name is known, and the conversation is a new one; so it is for the server's cache."""
    messages: Any = kept.get("messages") or kept.get("input")
    if not isinstance(messages, list):
        prompt = messages or kept.get("prompt")
        if not isinstance(prompt, str) or not prompt:
            return []
        start.update(prompt[:_PROMPT_BYTES].encode(errors="surrogatepass"))
        return [start.digest()]
    start.update(encode([kept.get("system"), kept.get("instructions"), kept.get("tools")]))
    names: list[bytes] = []
    for message in messages:
        start.update(encode(message))
        names.append(start.copy().digest())
    return names
