"""Which server gets a turn. Pure: the simulator of bench/picking.py runs the same code.

A turn of a conversation costs a server the part of its prompt that the server has not read yet, and its answer. Both are counted in bytes
of prompt; what a server still has ahead of it is its load.
"""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Generic, Literal, Protocol, TypeVar

import msgspec

from api_server.binding import Binding
from api_server.sessions import Turn

Reason = Literal["bound", "spilled", "lost", "paused", "new"]
"""Why a server got a turn: it holds the conversation; the one that does has so much ahead of it that reading all of it again elsewhere is
sooner; the one that did is gone, out, or lost the model; it had to make room for others; nobody knows the conversation."""
ANSWER = 8192
"""Bytes of prompt that a server reads in the time of an answer, roughly: 500 tokens at 20 a second beside 500 that are read."""
SPREAD = 1.25
"""A server gets no new conversation while it holds over so many times the mean (consistent hashing with bounded loads, Mirrokni, Thorup and
Zadimoghaddam 2016; the constant is that of KubeAI and of Vimeo's proxy)."""
_MASK = 2**64 - 1


class Server(Protocol):
    """What is known of a server."""

    host: str
    load: int
    """Bytes of prompt that it still has to read, and ANSWER for each answer that it is at work on."""


S = TypeVar("S", bound=Server)


class Choice(msgspec.Struct, Generic[S], frozen=True):
    """A server for a turn."""

    server: S
    reason: Reason
    unread: int
    """Bytes of the prompt that the server does not hold."""


@functools.lru_cache(maxsize=4096)
def _seed(host: str) -> int:
    return int.from_bytes(hashlib.blake2b(host.encode(), digest_size=8).digest())


def rendezvous(name: int, host: str) -> int:
    """Of a conversation at a server; the highest wins (rendezvous hashing). Both are digests already, so one multiplication mixes them; the
    constant is that of Fibonacci hashing."""
    return (name ^ _seed(host)) * 0x9E3779B97F4A7C15 & _MASK


def stays(turn: Turn, bound: Binding, home: Server, least: int = 0) -> bool:
    """Whether the server that holds the conversation answers sooner than one with `least` ahead, which would have to read all of it. With
    0, whatever the others have ahead."""
    return home.load - least <= min(bound.size, turn.size)


def choose(turn: Turn, bound: Binding | None, servers: Sequence[S], held: Mapping[str, int]) -> Choice[S]:
    """One of the servers, of which there is at least one. `held`: bytes of the conversations that are bound to each host."""
    home = next((server for server in servers if server.host == bound.host), None) if bound is not None else None
    least = min(server.load for server in servers)
    if home is not None and bound is not None and stays(turn, bound, home, least):
        return Choice(home, "bound", turn.size - min(bound.size, turn.size))
    name = int.from_bytes((turn.spot or turn.own)[:8])
    if home is not None or not turn.own:
        idlest = [server for server in servers if server.load == least]
        return Choice(max(idlest, key=lambda server: rendezvous(name, server.host)), "new" if home is None else "spilled", turn.size)
    weights = [server.load + held.get(server.host, 0) for server in servers]
    limit = SPREAD * sum(weights) / len(servers)
    roomy = [server for server, weight in zip(servers, weights, strict=True) if weight <= limit]
    reason = "new" if bound is None else "lost" if bound.host else "paused" if bound.size else "new"
    return Choice(max(roomy, key=lambda server: rendezvous(name, server.host)), reason, turn.size)
