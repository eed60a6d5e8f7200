"""A conversation, and the server that holds it."""

from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Binding:
    """A conversation: its server, and what that holds of it."""

    host: str
    """Empty: no server holds it. It waits for room for the first time, or had to make room for others."""
    size: int
    """Bytes of prompt that a server has read last; 0 before the first."""
    seen: float
    """When its last turn came, began or ended, by the monotonic clock."""
    began: float = 0.0
    """When its first turn came."""
    since: float = 0.0
    """When it got a server, or when it began to wait for one."""
    owner: bytes = b""
    name: bytes = b""
    """Under which it is known."""
    tokens: int = 0
    """Of prompt and answer together, as far as the server said."""
    at_work: int = 0
    """Turns that a server works on, or that wait in its line."""
    in_line: int = 0
    """Of those, the ones that wait."""
    paused: float | None = None
    """When its last turn ended. None: one is at work or has come, or other API servers have them."""
    parent: bytes = b""
    """The name of the conversation whose agent waits for this one's."""
    helped: float = 0.0
    """When an agent that it waits for asked or was answered last."""
