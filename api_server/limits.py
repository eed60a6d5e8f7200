"""What a key may use: requests and tokens of a minute, and requests at once, over all API servers as far as this one has heard."""

import time
from collections.abc import Mapping
from types import TracebackType

from aiohttp import web

from api_server import errors
from api_server.keys import Key
from api_server.peers import Peers

_SECONDS = 60
_RETRY_S = 2
"""For requests at once: nobody knows when one ends."""
_MOST_KEYS = 10_000
"""That are remembered by what was heard of them; this process' own come in any case."""


class Minute:
    """A sum over the last minute, by whole seconds."""

    def __init__(self) -> None:
        self._slots = [0] * _SECONDS
        self._second = 0
        self.total = 0

    def add(self, second: int, amount: int) -> None:
        """Count what was used in a second, which may be over already."""
        self._move(second)
        if second > self._second - _SECONDS:
            self._slots[second % _SECONDS] += amount
            self.total += amount

    def wait_s(self, second: int, limit: int, others: "Minute | None" = None) -> int:
        """Seconds until the sum, with that of `others`, is below the limit, 0 to 60."""
        each = (self,) if others is None else (self, others)
        left = 0
        for minute in each:
            minute._move(second)
            left += minute.total
        for waited in range(_SECONDS):
            if left < limit:
                return waited
            left -= sum(minute._slots[(second + 1 + waited) % _SECONDS] for minute in each)
        return _SECONDS

    def _move(self, second: int) -> None:
        """Forget what is older than a minute."""
        if second <= self._second:
            return
        for passed in range(max(self._second, second - _SECONDS) + 1, second + 1):
            self.total -= self._slots[passed % _SECONDS]
            self._slots[passed % _SECONDS] = 0
        self._second = second


class Used:
    """Of one limit: what was used here, what was used elsewhere, and what the others were not told yet."""

    def __init__(self) -> None:
        self.untold = 0
        self._here, self._elsewhere = Minute(), Minute()

    def add(self, amount: int) -> None:
        self._here.add(int(time.monotonic()), amount)
        self.untold += amount

    def hear(self, amount: int, age_s: float) -> None:
        self._elsewhere.add(int(time.monotonic() - age_s), amount)

    def wait_s(self, limit: int, peers: Peers) -> int:
        """Seconds until there is something left of the limit."""
        return self._here.wait_s(int(time.monotonic()), peers.share(limit), self._elsewhere if peers.agree else None)


class Account:
    """What a key has used. The block of its `with` is one request."""

    def __init__(self, key: Key, peers: Peers, requests: Used, tokens: Used) -> None:
        self.key = key
        self.at_once = 0
        self._peers, self._requests, self._tokens = peers, requests, tokens

    def admit(self, most_at_once: int) -> None:
        """Count a request. Raises ApiError 429 beyond a limit; what is refused does not count."""
        grant, peers = self.key.grant, self._peers
        if self.at_once >= most_at_once:
            raise errors.too_many_of_a_key(most_at_once, "requests at once", _RETRY_S)
        if (limit := grant.concurrency) and self.at_once + peers.at_once(self.key.name) >= peers.share(limit):
            raise errors.too_many_of_a_key(limit, "requests at once", _RETRY_S)
        if (limit := grant.tokens_per_minute) and (wait_s := self._tokens.wait_s(limit, peers)):
            raise errors.too_many_of_a_key(limit, "tokens a minute", wait_s)
        if limit := grant.requests_per_minute:
            if wait_s := self._requests.wait_s(limit, peers):
                raise errors.too_many_of_a_key(limit, "requests a minute", wait_s)
            self._requests.add(1)

    def charge(self, tokens: int) -> None:
        """Count the tokens of an answer."""
        if self.key.grant.tokens_per_minute:
            self._tokens.add(tokens)

    def __enter__(self) -> None:
        self.at_once += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.at_once -= 1


ACCOUNT = web.RequestKey("account", Account)
"""Of a request's key."""


class Limits:
    """The accounts of all keys, by name: a key that was changed for another one under its name goes on where that was."""

    def __init__(self, most_at_once: int, peers: Peers) -> None:
        self._most_at_once = most_at_once
        """Of any key, here. An address may be a whole company behind one ingress, a key is one client."""
        self._peers = peers
        self._accounts: dict[str, Account] = {}
        self._used: dict[str, tuple[Used, Used]] = {}
        """By the name of a key, which may have been used elsewhere alone: requests and tokens."""

    def admitted(self, key: Key) -> Account:
        """The account of a key that may have one more request. Raises ApiError 429."""
        account = self._accounts.get(key.name)
        if account is None:
            account = self._accounts[key.name] = Account(key, self._peers, *self._used_of(key.name))
        account.key = key
        account.admit(self._most_at_once)
        return account

    def at_once(self) -> dict[str, int]:
        """Requests in work, of keys whose number is limited."""
        return {name: each.at_once for name, each in self._accounts.items() if each.at_once and each.key.grant.concurrency}

    def untold(self) -> dict[str, tuple[int, int]]:
        """Requests and tokens of each key that the others have not heard of."""
        untold = {name: (requests.untold, tokens.untold) for name, (requests, tokens) in self._used.items()}
        return {name: each for name, each in untold.items() if any(each)}

    def told(self, used: Mapping[str, tuple[int, int]]) -> None:
        """The others can hear of it now."""
        for name, amounts in used.items():
            for of, amount in zip(self._used[name], amounts, strict=True):
                of.untold -= amount

    def hear(self, used: Mapping[str, tuple[int, int]], age_s: float) -> None:
        """What keys used elsewhere, so many seconds ago."""
        for name, amounts in used.items():
            if age_s < _SECONDS and (name in self._used or len(self._used) < _MOST_KEYS):
                for of, amount in zip(self._used_of(name), amounts, strict=True):
                    of.hear(amount, age_s)

    def _used_of(self, name: str) -> tuple[Used, Used]:
        return self._used.setdefault(name, (Used(), Used()))
