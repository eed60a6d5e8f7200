"""What a key may use: requests and tokens of a minute, and requests at once. Each API server counts for itself."""

import time
from types import TracebackType

from aiohttp import web

from api_server import errors
from api_server.keys import Key

_SECONDS = 60
_RETRY_S = 2
"""For requests at once: nobody knows when one ends."""


class Minute:
    """A sum over the last minute, by whole seconds."""

    def __init__(self) -> None:
        self._slots = [0] * _SECONDS
        self._second = 0
        self.total = 0

    def add(self, second: int, amount: int) -> None:
        self._move(second)
        self._slots[second % _SECONDS] += amount
        self.total += amount

    def wait_s(self, second: int, limit: int) -> int:
        """Seconds until the sum is below the limit, 0 to 60."""
        self._move(second)
        left = self.total
        for waited in range(_SECONDS):
            if left < limit:
                return waited
            left -= self._slots[(second + 1 + waited) % _SECONDS]
        return _SECONDS

    def _move(self, second: int) -> None:
        """Forget what is older than a minute."""
        for passed in range(max(self._second, second - _SECONDS) + 1, second + 1):
            self.total -= self._slots[passed % _SECONDS]
            self._slots[passed % _SECONDS] = 0
        self._second = second


class Account:
    """What a key has used. The block of its `with` is one request."""

    def __init__(self, key: Key) -> None:
        self.key = key
        self.at_once = 0
        self._requests = Minute()
        self._tokens = Minute()

    def admit(self, most_at_once: int) -> None:
        """Count a request. Raises ApiError 429 beyond a limit; what is refused does not count."""
        grant = self.key.grant
        most = min(most_at_once, grant.concurrency or most_at_once)
        if self.at_once >= most:
            raise errors.too_many_of_a_key(most, "requests at once", _RETRY_S)
        second = int(time.monotonic())
        if (limit := grant.tokens_per_minute) and (wait_s := self._tokens.wait_s(second, limit)):
            raise errors.too_many_of_a_key(limit, "tokens a minute", wait_s)
        if limit := grant.requests_per_minute:
            if wait_s := self._requests.wait_s(second, limit):
                raise errors.too_many_of_a_key(limit, "requests a minute", wait_s)
            self._requests.add(second, 1)

    def charge(self, tokens: int) -> None:
        """Count the tokens of an answer."""
        if self.key.grant.tokens_per_minute:
            self._tokens.add(int(time.monotonic()), tokens)

    def __enter__(self) -> None:
        self.at_once += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.at_once -= 1


ACCOUNT = web.RequestKey("account", Account)
"""Of a request's key."""


class Limits:
    """The accounts of all keys, by name: a key that was changed for another one under its name goes on where that was."""

    def __init__(self, most_at_once: int) -> None:
        self._most_at_once = most_at_once
        """Of any key. An address may be a whole company behind one ingress, a key is one client."""
        self._accounts: dict[str, Account] = {}

    def admitted(self, key: Key) -> Account:
        """The account of a key that may have one more request. Raises ApiError 429."""
        account = self._accounts.get(key.name)
        if account is None:
            account = self._accounts[key.name] = Account(key)
        account.key = key
        account.admit(self._most_at_once)
        return account
