"""`python guard.py PARENT COMMAND…`: become COMMAND, which the kernel ends together with the process PARENT.

A program of its own: between fork and exec, Python may not run code of ours safely.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
"""Source: linux/prctl.h."""


def main() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 (a fixed argument list)


if __name__ == "__main__":
    main()
