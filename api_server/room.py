"""The memory of a server for conversations."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Room:
    """What a server keeps of conversations: one in each slot, however long it is, and the others in `size` bytes of its memory. One that
    comes back needs room there for the one that it takes a slot from, before it leaves its own."""

    slots: int
    size: int

    def fits(self, count: int, size: int) -> bool:
        """Whether so many conversations of `size` bytes together fit. Those in slots count as long as the mean."""
        return count <= max(1, self.slots) or size * (count - self._beside) <= self.size * count

    def servers(self, count: int, size: int) -> int:
        """The fewest servers of which all together would fit so many conversations: the formula of `fits` for n times the slots and bytes,
        solved for n."""
        if not size:
            return 0
        in_slots = -(-count // max(1, self.slots))
        together = self.size * count + size * self._beside
        return min(in_slots, -(-size * count // together)) if together else in_slots

    @property
    def _beside(self) -> int:
        """Slots whose conversations need no room in memory."""
        return max(0, self.slots - 1)


class Coming:
    """New conversations that hosts were sent and have not read, and the bytes of their prompts."""

    def __init__(self) -> None:
        self.here: dict[str, tuple[int, int]] = {}
        self.elsewhere: Mapping[str, tuple[int, int]] = {}
        """What other API servers sent."""

    def expect(self, host: str, count: int, size: int) -> None:
        """It will read so many more or, below 0, has read them or will not."""
        before = self.here.get(host, (0, 0))
        left = before[0] + count, before[1] + size
        if any(left):
            self.here[host] = left
        else:
            self.here.pop(host, None)

    def to(self, host: str) -> tuple[int, int]:
        here, elsewhere = self.here.get(host, (0, 0)), self.elsewhere.get(host, (0, 0))
        return here[0] + elsewhere[0], here[1] + elsewhere[1]
