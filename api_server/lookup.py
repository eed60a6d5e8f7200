"""Which addresses a host name has, and whether the look-up said so: a failed one says nothing about the servers."""

import asyncio
import re
import socket
from pathlib import Path

_NO_SUCH_NAME = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
_PATIENCE_S = 5.0
"""The resolver's own is longer, and its thread may be late."""
_RESOLV_CONF = Path("/etc/resolv.conf")


def full_name(host: str, resolv_conf: Path = _RESOLV_CONF) -> str:
    """In a pod, the absolute name of a Service of its namespace; any other host as it is.

    The resolver would ask for the short name itself last, outside of the cluster, and when nobody answers there, say "try again" for a
    Service that has no pod. The first search domain of a pod is `<namespace>.svc.<cluster domain>`, whatever that is (Kubernetes,
    "DNS for Services and Pods").
    """
    if "." in host or ":" in host:
        return host
    try:
        found = re.search(r"^search\s+([^\s.]+\.svc\.\S+)", resolv_conf.read_text(), re.MULTILINE)
    except OSError:
        found = None
    return f"{host}.{found[1].rstrip('.')}." if found else host


async def addresses(host: str, port: int) -> list[str] | None:
    """Of a host. None where the look-up failed: whatever was known before still holds."""
    try:
        async with asyncio.timeout(_PATIENCE_S):
            # Not by the loop, which has another way with TLS than without.
            found = await asyncio.to_thread(socket.getaddrinfo, full_name(host), port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        # Only the word that there is no such name means no server.
        return [] if error.errno in _NO_SUCH_NAME else None
    except (OSError, UnicodeError):
        return None
    return list(dict.fromkeys(str(info[4][0]) for info in found))
