"""How many bytes of a request are a token, as servers count."""

_GUESS, _LEAST, _MOST = 3.0, 2.0, 8.0
"""Of prompts as clients send them: before servers have said, and between which bounds they are believed. The guess is low, since memory
that is not there costs more than memory that is not used."""
_WEIGHT, _KEEP = 10_000, 0.99
"""Tokens that the guess counts as, and how much of what was said stays with each answer."""


class Density:
    """Of the prompts for one model."""

    def __init__(self) -> None:
        self._bytes, self._tokens = _GUESS * _WEIGHT, float(_WEIGHT)

    @property
    def bytes_per_token(self) -> float:
        return min(max(self._bytes / self._tokens, _LEAST), _MOST)

    def learn(self, size: int, tokens: int) -> None:
        """A server counted so many tokens in a prompt of `size` bytes."""
        self._bytes, self._tokens = self._bytes * _KEEP + size, self._tokens * _KEEP + tokens
