"""A name with several addresses, for a process of a test. Only the look-up of the name is made up."""

from pathlib import Path

FLEET = "fleet.test"


def resolving(work: Path, *addresses: str) -> dict[str, str]:
    """The environment in which Python finds FLEET at these addresses."""
    (work / "dns").mkdir()
    (work / "dns" / "sitecustomize.py").write_text(
        "import socket\n"
        "real = socket.getaddrinfo\n"
        "def look_up(host, port, *args, **kwargs):\n"
        f"    if host != {FLEET!r}:\n"
        "        return real(host, port, *args, **kwargs)\n"
        f"    return [item for address in {addresses!r} for item in real(address, port, *args, **kwargs)]\n"
        "socket.getaddrinfo = look_up\n"
    )
    return {"PYTHONPATH": str(work / "dns")}
