"""The body of a request: read, bounded, and parsed beside the loop where it is long."""

import asyncio
import itertools
import json
import re
from typing import Any

from aiohttp import web

from model_server.errors import ApiError

MAX_BODY_BYTES = 32 * 2**20
_FEWEST_VALUES = 50_000
"""JSON values that any request may have: long lists to embed, large schemas of tools."""
_LARGE = 64 * 2**10
"""Bytes, from which on it is parsed in a thread."""
_MARKS = b"{[,:"
"""One of them stands before each value and each key, except the first."""
_FOUND = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\Z)|[{\[,:]', re.DOTALL)


async def read(request: web.Request, limit_s: float, context: int) -> Any:
    """What the body says. Raises ApiError on one that takes longer to come, is too large, is no JSON, or has more values than a prompt of
    `context` tokens can have."""
    try:
        async with asyncio.timeout(limit_s):
            body = await request.read()
    except TimeoutError:
        message = f"body: got no end of it within {limit_s:g} s, want the whole body as its headers say; send it faster"
        raise ApiError(408, "invalid_request_error", message, "request_timeout", {"Connection": "close"}) from None
    # Each value of a prompt is at least one token, and a request has a few values beside.
    most = max(_FEWEST_VALUES, 2 * context)
    return _parsed(body, most) if len(body) < _LARGE else await asyncio.to_thread(_parsed, body, most)


def _parsed(body: bytes, most: int) -> Any:
    if not _is_bounded(body, most):
        message = f"body: got more than {most} JSON values; send less"
        raise ApiError(413, "invalid_request_error", message, "request_too_large")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "invalid_request_error", f"body: got no JSON ({error}), want a JSON object; correct it") from None


def _is_bounded(body: bytes, most: int) -> bool:
    if len(body) - len(body.translate(None, _MARKS)) < most:
        return True
    # Those within texts do not count. A text has a mark before it, so twice as many finds are enough.
    found = (body[each.start()] for each in itertools.islice(_FOUND.finditer(body), 2 * most))
    return sum(first != ord('"') for first in found) < most
