"""Where a process is asked over both families of addresses: a network of its own, and a kernel that has no IPv6.

The second is made by a filter of system calls: `python -m tests.service.families PROGRAM ARGUMENTS…` runs a program that is told what a
kernel with `ipv6.disable=1` tells it.
"""

import ctypes
import errno
import os
import platform
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WITHOUT_IPV6 = (sys.executable, "-m", "tests.service.families")
_NEW_NETWORK = 0x40000000
"""CLONE_NEWNET of linux/sched.h."""
_SOCKET = {"x86_64": 41, "aarch64": 198}
"""Number of the system call."""
_NO_NEW_PRIVILEGES, _SET_FILTER, _FILTERED = 38, 22, 2
"""PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP and SECCOMP_MODE_FILTER of linux/prctl.h and linux/seccomp.h."""
_LOAD, _IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
"""Instructions of linux/bpf_common.h."""
_NUMBER_AT, _FIRST_ARGUMENT_AT = 0, 16
"""Places in struct seccomp_data."""
_ERROR, _ALLOW = 0x00050000, 0x7FFF0000


@contextmanager
def own_network() -> Iterator[None]:
    """This thread, and the processes that it starts meanwhile, in a network with loopback alone. Needs root, as the embedded cluster does."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open("rb") as before:
        assert libc.unshare(_NEW_NETWORK) == 0, os.strerror(ctypes.get_errno())
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            yield
        finally:
            assert libc.setns(before.fileno(), _NEW_NETWORK) == 0, os.strerror(ctypes.get_errno())


def _forget_ipv6() -> None:
    """For this process and all that it becomes: a socket of that family is an unknown thing."""
    program = [
        (_LOAD, 0, 0, _NUMBER_AT),
        (_IF_EQUAL, 0, 3, _SOCKET[platform.machine()]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT_AT),
        (_IF_EQUAL, 0, 1, socket.AF_INET6),
        (_RETURN, 0, 0, _ERROR | errno.EAFNOSUPPORT),
        (_RETURN, 0, 0, _ALLOW),
    ]
    instructions = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in program))
    filter_ = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(instructions)))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((_NO_NEW_PRIVILEGES, 1, 0, 0, 0), (_SET_FILTER, _FILTERED, filter_, 0, 0)):
        assert libc.prctl(*arguments) == 0, os.strerror(ctypes.get_errno())


if __name__ == "__main__":
    _forget_ipv6()
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606 (that is what it is for)
