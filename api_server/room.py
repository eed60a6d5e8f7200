"""The memory of a server for conversations."""

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
