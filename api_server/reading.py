"""Reads what servers say about themselves: bounded, because a server may be another one than we think, or broken."""

import json
from typing import Any

import aiohttp

LATE_OR_STRANGE = (aiohttp.ClientError, OSError, TimeoutError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What a server that is late, or no such server, makes of a question."""
_MOST_BYTES = 8 * 2**20
"""Of one answer. A list of a thousand models takes under one."""


async def document(response: aiohttp.ClientResponse, most: int = _MOST_BYTES) -> Any:
    """The JSON of an answer with status 200. Raises one of LATE_OR_STRANGE."""
    if response.status != 200:
        raise ValueError(f"status {response.status}")
    return json.loads(await body(response, most))


async def body(response: aiohttp.ClientResponse, most: int = _MOST_BYTES) -> bytes:
    """The answer's body. Raises ValueError on a longer one, and aiohttp.ClientError."""
    if response.headers.get("content-encoding", "identity") != "identity":
        raise ValueError("a compressed answer")
    whole = bytearray()
    async for chunk in response.content.iter_any():
        whole += chunk
        if len(whole) > most:
            raise ValueError(f"more than {most} bytes")
    return bytes(whole)
