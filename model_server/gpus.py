"""Whether the GPUs of this container still answer: `nvidia-smi` is asked, which NVIDIA's runtime puts beside them.

An engine that waits for requests does not touch its GPU, so it would take the next request, and fail on it.
"""

import asyncio
import logging
from asyncio.subprocess import DEVNULL, PIPE, STDOUT

from model_server.engine import Engine

log = logging.getLogger("model_server")
EACH_S, PATIENCE_S = 15.0, 10.0
_LOST = (9, 15, 255)
"""The driver is not there, a GPU has fallen off the bus, or an error in the driver (nvidia-smi(1), RETURN VALUE). With what it says
otherwise, such as a note of its configuration, a GPU works."""


async def watch(engine: Engine, program: str = "nvidia-smi") -> None:
    """Keep `engine.lost` as the driver says it. Ends at once in a container without GPUs."""
    while True:
        try:
            process = await asyncio.create_subprocess_exec(program, "-L", stdin=DEVNULL, stdout=PIPE, stderr=STDOUT)
        except OSError:
            return
        asked = asyncio.create_task(process.communicate())
        if not (await asyncio.wait([asked], timeout=PATIENCE_S))[0]:
            _note(engine, f"no answer within {PATIENCE_S:g} s")
            process.kill()
        # One that hangs in the driver does not end before it. Nobody asks a second time meanwhile.
        said = (await asked)[0].decode(errors="replace").strip()
        if process.returncode is not None and process.returncode >= 0:
            _note(engine, (said or f"exit status {process.returncode}") if process.returncode in _LOST else "")
        await asyncio.sleep(EACH_S)


def _note(engine: Engine, lost: str) -> None:
    if lost != engine.lost:
        log.warning("GPU: got %s, want it to answer; unready until it does", lost) if lost else log.info("GPU: it answers again")
    engine.lost = lost
