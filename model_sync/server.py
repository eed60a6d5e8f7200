"""What the Ollama beside a replica's store is doing with it."""

import fcntl
import json
import os
import urllib.error
import urllib.request
from pathlib import Path

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def loaded_models(server: str) -> set[str] | None:
    """Digests (hex) of the models that the server beside us has loaded; None when it does not say, nothing when none runs."""
    try:
        with _OPENER.open(f"{server}/api/ps", timeout=5) as response:
            return {model["digest"].removeprefix("sha256:") for model in json.load(response)["models"]}
    except (OSError, ValueError, KeyError) as error:
        return set() if _no_server(error) else None


def _no_server(error: Exception) -> bool:
    return isinstance(error, urllib.error.URLError) and isinstance(error.reason, ConnectionRefusedError)


def unload(server: str, name: str) -> None:
    """Ask the server to let go of a model once its requests have ended. While its manifest is there, since later its name is unknown."""
    body = json.dumps({"model": name, "keep_alive": 0}).encode()
    request = urllib.request.Request(f"{server}/api/generate", body, {"Content-Type": "application/json"})  # noqa: S310 (our own pod)
    try:
        _OPENER.open(request, timeout=5).close()
    except OSError as error:
        if not _no_server(error):
            print(f"{name}: not unloaded ({error})", flush=True)


def withheld(agent: str) -> dict[str, tuple[str, str]] | None:
    """Models that the server must not be asked for, since to load them ended it: name to the digest that did, and the reason. None when the
    agent does not say."""
    try:
        with _OPENER.open(f"{agent}/withheld", timeout=5) as response:
            return {str(name): (str(each["digest"]), str(each["reason"])) for name, each in json.load(response).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def is_open(path: Path) -> bool:
    """Whether any process of this node has the file open or mapped: the kernel grants a write lease to a sole user only."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:
        return False  # The file system knows no leases; what the server has loaded is known without them.
    finally:
        os.close(handle)
    return False
