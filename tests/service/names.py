"""A name with several addresses, for a process of a test, and those of pods of a StatefulSet of that name. Only the look-up is made up."""

from pathlib import Path

FLEET = "fleet.test"
_PROGRAM = """
import re
import socket
real = socket.getaddrinfo
def look_up(host, port, *args, **kwargs):
    pod = re.fullmatch(HOST_ + "-([0-9]+)." + HOST_, str(host))
    if host != HOST_ and not pod:
        return real(host, port, *args, **kwargs)
    lines = open(FILE_).read().split()
    if pod:
        lines = lines[int(pod[1]):][:1]
    if lines == ["again"]:
        raise socket.gaierror(socket.EAI_AGAIN, "try again")
    if lines == ["fault"]:
        raise RuntimeError("a fault of ours")
    if not lines:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")
    return [item for address in lines for item in real(address, port, *args, **kwargs)]
socket.getaddrinfo = look_up
"""


class Name:
    """What FLEET looks up to, now and later."""

    def __init__(self, work: Path, *lines: str) -> None:
        self._directory, self._file = work / "look-up", work / "addresses"
        self._directory.mkdir(exist_ok=True)
        program = _PROGRAM.replace("HOST_", repr(FLEET)).replace("FILE_", repr(str(self._file)))
        (self._directory / "sitecustomize.py").write_text(program)
        self.is_now(*lines)

    @property
    def environment(self) -> dict[str, str]:
        """In which Python looks it up so."""
        return {"PYTHONPATH": str(self._directory)}

    def is_now(self, *lines: str) -> None:
        """What the name has from now on: addresses, none, or `again`, or `fault`."""
        fresh = self._file.with_suffix(".fresh")
        fresh.write_text("\n".join(lines))
        fresh.replace(self._file)
