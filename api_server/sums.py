"""Sums by key."""

from typing import TypeVar

K = TypeVar("K")


class Sums(dict[K, int]):
    """A key whose sum is used up goes: servers and owners that went must not be remembered for ever."""

    def add(self, key: K, amount: int) -> None:
        left = self.get(key, 0) + amount
        if left > 0:
            self[key] = left
        else:
            self.pop(key, None)
