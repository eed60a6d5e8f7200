"""The memory of a server for conversations."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Room:
    """What a server keeps of conversations: some in slots, however long they are, and the others in `size` bytes of its memory; one in any
    case."""

    slots: int
    size: int

    def fits(self, count: int, size: int) -> bool:
        """Whether so many conversations of `size` bytes together fit. Those in slots count as long as the mean."""
        return count <= max(1, self.slots) or size * (count - self.slots) <= self.size * count

    def servers(self, count: int, size: int) -> int:
        """The fewest servers of which all together would fit so many conversations: the formula of `fits` for n times the slots and bytes,
        solved for n."""
        if not size:
            return 0
        each = -(-count // max(1, self.slots))
        together = self.size * count + size * self.slots
        return min(each, -(-size * count // together)) if together else each
