"""What API servers tell each other once a second, and what follows: who is there, and how many places of a server each may use."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated

import msgspec

ALIVE_S = 3.5
"""An API server that was silent for longer is gone: three words of it are missing."""
TURN_S = 10
"""How often the places that are left over when a server's are divided go round."""
_MOST = 256
"""API servers that are remembered."""

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Name = Annotated[bytes, msgspec.Meta(max_length=64)]
Text = Annotated[str, msgspec.Meta(max_length=512)]


class Told(msgspec.Struct, array_like=True, frozen=True):
    """A conversation, after a server has read or answered a turn of it (bindings.Binding)."""

    before: Name
    """The name that it had; empty when it is new."""
    name: Name
    host: Text
    size: Count
    owner: Name
    tokens: Count
    parent: Name = b""


class Untold:
    """Conversations that other API servers have still to hear of: each once, however many turns it had, and the newest at most."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._by_name: dict[bytes, Told] = {}

    def add(self, told: Told) -> None:
        earlier = self._by_name.pop(told.before, None)
        self._by_name[told.name] = told if earlier is None else msgspec.structs.replace(told, before=earlier.before)
        if len(self._by_name) > self._most:
            del self._by_name[next(iter(self._by_name))]

    def turns(self) -> list[Told]:
        """In the order of their last turns."""
        return list(self._by_name.values())


class Busy(msgspec.Struct, array_like=True, frozen=True):
    """A server, as far as one API server uses it."""

    in_flight: Count = 0
    wanted: Count = 0
    """Requests that wait for a place there."""
    load: Count = 0
    """Work ahead, in bytes of prompt."""


class Talk(msgspec.Struct, array_like=True):
    """The conversations with one model."""

    turns: list[Told]
    at_work: list[Name]
    """Names of those that have a turn in work."""
    coming: dict[Text, tuple[Count, Count]]
    """By host, new conversations and bytes of prompts that it has still to read."""


class Word(msgspec.Struct, array_like=True):
    """What one API server tells the others."""

    gateway: Name
    draining: bool
    """It takes no more requests."""
    at_once: dict[Text, Count]
    """By the name of a key, its requests in work."""
    used: dict[Text, tuple[Count, Count]]
    """By the name of a key, requests and tokens since the last word."""
    servers: dict[Text, dict[Text, Busy]]
    """By base URL and host."""
    models: dict[Text, Talk]


class Peers:
    """The other API servers. Without word of them each keeps to its share."""

    def __init__(self, own: bytes, expected: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.own = own
        self._clock = clock
        self._settled = float("-inf")
        """When what is ours was said and what is others' was heard last."""
        self._count = expected
        self._heard: dict[bytes, tuple[float, Word]] = {}

    @property
    def agree(self) -> bool:
        """Whether what others do is known."""
        return self._clock() - self._settled < ALIVE_S

    @property
    def count(self) -> int:
        """API servers that take requests, with this one; as many as there were last, or as are expected, when nobody knows."""
        if self.agree:
            self._count = 1 + sum(not word.draining for word in self.live())
        return self._count

    def settled(self) -> None:
        """What was said and heard is of now."""
        self._settled = self._clock()

    def hear(self, word: Word, age_s: float) -> None:
        """`age_s`: since it was said, in seconds."""
        if word.gateway == self.own:
            return
        self._heard.pop(word.gateway, None)
        self._heard[word.gateway] = self._clock() - age_s, word
        if len(self._heard) > _MOST:
            del self._heard[next(iter(self._heard))]

    def live(self) -> list[Word]:
        """The last word of each other API server that was there at the last settlement."""
        oldest = self._settled - ALIVE_S
        for gateway in [gateway for gateway, (heard, _) in self._heard.items() if heard < oldest]:
            del self._heard[gateway]
        return [word for _, word in self._heard.values()] if self.agree else []

    def share(self, limit: int) -> int:
        """Of a limit that holds for all API servers together, what this one may use up beside what is known of the others."""
        return limit if self.agree else -(-limit // self.count)

    def at_once(self, key: str) -> int:
        """Requests of a key in work elsewhere."""
        return sum(word.at_once.get(key, 0) for word in self.live())

    def load(self, url: str, host: str) -> int:
        """Work ahead of a server that others sent there, in bytes of prompt."""
        return sum(_busy(word, url, host).load for word in self.live())

    def coming(self, model: str) -> dict[str, tuple[int, int]]:
        """By host, new conversations with a model and bytes of prompts that others sent there, and that it has not read."""
        found: dict[str, tuple[int, int]] = {}
        for talk in (word.models[model] for word in self.live() if model in word.models):
            for host, (count, size) in talk.coming.items():
                before = found.get(host, (0, 0))
                found[host] = before[0] + count, before[1] + size
        return found

    def parts(self, url: str, hosts: Iterable[str], places: int, second: float) -> Mapping[str, int]:
        """By host, how many of its `places` are ours: those that others neither use nor, up to their share, wait for. Nothing is idle for
        who does not want it, and when all want all, each has its share. What a division leaves over goes round by `second`, of a clock
        that all have."""
        live = self.live()
        if not self.agree:
            return dict.fromkeys(hosts, self.share(places))
        names = sorted([self.own, *(word.gateway for word in live if not word.draining)])
        parts: dict[str, int] = {}
        for number, host in enumerate(sorted(hosts)):
            shift = number + int(second // TURN_S)
            each, over = divmod(places, len(names))
            due = {name: each + ((index + shift) % len(names) < over) for index, name in enumerate(names)}
            taken = 0
            for word in live:
                busy = _busy(word, url, host)
                taken += max(busy.in_flight, min(due.get(word.gateway, 0), busy.in_flight + busy.wanted))
            parts[host] = max(0, places - taken)
        return parts


def _busy(word: Word, url: str, host: str) -> Busy:
    return word.servers.get(url, {}).get(host, _IDLE)


_IDLE = Busy()
