"""Who is connected to the server, from the kernel's own tables: Ollama does not tell what it has in flight.

In a pod all containers share one network namespace, so /proc/net/tcp shows the server's sockets without any privilege.
"""

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_TABLES = ("tcp", "tcp6")
_LISTEN = 0x0A
_IN_USE = {0x01, 0x04, 0x08}
"""ESTABLISHED, FIN_WAIT1 (the end of an answer is still on its way), CLOSE_WAIT (a client that only sends no more).
Source: include/net/tcp_states.h."""


@dataclass(frozen=True)
class Socket:
    local: ipaddress.IPv4Address | ipaddress.IPv6Address
    port: int
    state: int
    inode: int


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The kernel writes each 32-bit word in the machine's byte order, which is little-endian on every platform of ours."""
    words = [bytes.fromhex(text[start : start + 8])[::-1] for start in range(0, len(text), 8)]
    raw = b"".join(words)
    if len(raw) == 4:
        return ipaddress.IPv4Address(raw)
    address = ipaddress.IPv6Address(raw)
    return address.ipv4_mapped or address


def _all(net: Path) -> Iterator[Socket]:
    for table in _TABLES:
        try:
            lines = (net / table).read_text().splitlines()[1:]
        except FileNotFoundError:
            # A kernel without IPv6.
            continue
        for line in lines:
            fields = line.split()
            address, _, number = fields[1].partition(":")
            yield Socket(_address(address), int(number, 16), int(fields[3], 16), int(fields[9]))


def sockets(port: int, net: Path) -> Iterator[Socket]:
    """TCP sockets whose local port is `port`."""
    return (each for each in _all(net) if each.port == port)


def loopback_listeners(net: Path) -> dict[int, int]:
    """Ports that take connections from within the pod alone, each with the identity of its socket."""
    return {each.port: each.inode for each in _all(net) if each.state == _LISTEN and each.local.is_loopback}


def in_flight(port: int, net: Path = Path("/proc/net")) -> int:
    """Connections from outside the pod. Those over loopback are the agent's and its neighbours'."""
    return sum(1 for each in sockets(port, net) if each.state in _IN_USE and not each.local.is_loopback)


def listener(port: int, net: Path = Path("/proc/net")) -> int | None:
    """Identity of the listening socket: another one means that the server was started anew. None: nobody listens."""
    return next((each.inode for each in sockets(port, net) if each.state == _LISTEN), None)
