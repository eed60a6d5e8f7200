"""The engine's process: `python -m model_server.llama_cpp PARAMETERS`. Prints one JSON line when the model is loaded.

It ends with the server, or when its standard input closes, so it never outlives the server.
"""

import ctypes
import json
import os
import select
import signal
import sys
from typing import Any

from model_server.pooling import RANK

_PR_SET_PDEATHSIG = 1
"""Source: linux/prctl.h."""


def main() -> int:
    if sys.platform == "linux":
        # Loading a large model takes minutes, in which the library lets no other thread of ours read standard input.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Nothing is ever written there: it is readable once the server has ended, perhaps before the line above.
    if select.select([sys.stdin], [], [], 0)[0]:
        return 1
    import xllamacpp  # noqa: PLC0415 (only this process pays for it)

    library: Any = xllamacpp
    given = json.loads(sys.argv[1])
    params = library.CommonParams()
    params.model.path = given["model"]
    params.model_alias = {given["alias"]}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_ctx = given["context"]
    params.n_parallel = given["parallel"]
    params.ctx_shift = False
    params.use_jinja = True
    params.warmup = False
    if given["pooling"]:
        params.embedding = True
        if given["pooling"] == RANK:
            # For a score the server asks this parameter, and not the model.
            params.pooling_type = library.llama_pooling_type.LLAMA_POOLING_TYPE_RANK
        # A text is read whole, or not at all.
        params.n_batch = params.n_ubatch = given["context"] // given["parallel"]
    params.verbosity = 1
    # Old prompts kept in host memory; upstream's default is 8 GiB.
    params.cache_ram_mib = int(os.environ.get("LLAMA_ARG_CACHE_RAM", "256"))
    if given["threads"]:
        params.cpuparams.n_threads = given["threads"]
    # The library writes to standard output too; our one line must be alone there.
    announce = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    server = library.Server(params)
    announce.write(json.dumps({"url": server.listening_address.rstrip("/")}) + "\n")
    announce.close()
    sys.stdin.read()
    # The library's destructor waits for requests that nobody will read.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
