"""What the processes of engines share: how each begins, and that each ends with its server."""

import ctypes
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

_PR_SET_PDEATHSIG = 1
"""Source: linux/prctl.h."""


def begin() -> TextIO | None:
    """Where the one line goes that says where the engine answers; None when the server has ended already.

    Standard output is standard error from here on: an engine writes there too, and the line must be alone.
    """
    if sys.platform == "linux":
        # Loading a large model takes minutes, in which the library lets no other thread of ours read standard input.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Nothing is ever written there: it is readable once the server has ended, perhaps before the line above.
    if select.select([sys.stdin], [], [], 0)[0]:
        return None
    announce = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return announce


def say(announce: TextIO, url: str) -> None:
    """Say where the engine answers."""
    announce.write(json.dumps({"url": url}) + "\n")
    announce.close()


def become(argv: Sequence[str], env: Mapping[str, str] | None = None) -> None:
    """Another program takes the place of this one, and still ends with the server."""
    os.execve(argv[0], list(argv), dict(os.environ if env is None else env))  # noqa: S606 (no shell is wanted)


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def flags(pairs: Mapping[str, Any], switches: Sequence[str] = ()) -> list[str]:
    """A command line of options with values, and of options without."""
    return [*(str(part) for pair in pairs.items() for part in pair), *switches]
