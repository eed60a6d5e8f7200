"""The engine's process: `python -m model_server.llama_cpp PARAMETERS`. Prints one JSON line that says where it answers.

It becomes llama.cpp's own `llama-server`, where the image has one, or serves from the package xllamacpp. Either ends with the server.
"""

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from model_server import child
from model_server.pooling import RANK

SAME = 0.5
"""The part of a prompt that a slot must begin with to be taken for the same conversation's; another takes the slot that was silent for
longest. llama.cpp's own tenth is less than the system prompt that agents have in common: all of them got one slot, and pushed each other
out of it."""


def main() -> int:
    announce = child.begin()
    if announce is None:
        return 1
    given = json.loads(sys.argv[1])
    if given["binary"]:
        port = child.free_port()
        child.say(announce, f"http://127.0.0.1:{port}")
        child.become(command(given, port))
    import xllamacpp  # noqa: PLC0415 (only this process pays for it)

    library: Any = xllamacpp
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
    params.slot_prompt_similarity = SAME
    # Old prompts kept in host memory; upstream's default is 8 GiB.
    params.cache_ram_mib = given["prompt_cache_mib"]
    # What is in a slot would be in host memory too, and copied there whenever another request begins.
    params.cache_idle_slots = False
    if given["slots_dir"]:
        params.slot_save_path = given["slots_dir"]
    if given["threads"]:
        params.cpuparams.n_threads = given["threads"]
    server = library.Server(params)
    child.say(announce, server.listening_address.rstrip("/"))
    sys.stdin.read()
    # The library's destructor waits for requests that nobody will read.
    os._exit(0)


def command(given: Mapping[str, Any], port: int) -> list[str]:
    """The same, as arguments of llama-server. Source: llama.cpp, common/arg.cpp, build 10488."""
    arguments = {
        "--model": given["model"],
        "--alias": given["alias"],
        "--host": "127.0.0.1",
        "--port": port,
        "--ctx-size": given["context"],
        "--parallel": given["parallel"],
        "--cache-ram": given["prompt_cache_mib"],
        "--slot-prompt-similarity": SAME,
        "--log-verbosity": 1,
        # Left to itself it takes layers off the GPU, or cuts the context, until the model fits; ours must fit as declared, or fail.
        "--fit": "off",
        "--gpu-layers": "all",
    }
    if given["slots_dir"]:
        arguments["--slot-save-path"] = given["slots_dir"]
    if given["threads"]:
        arguments["--threads"] = given["threads"]
    if given["pooling"]:
        arguments |= dict.fromkeys(("--batch-size", "--ubatch-size"), given["context"] // given["parallel"])
    if given["pooling"] == RANK:
        arguments["--pooling"] = "rank"
    switches = ["--no-context-shift", "--jinja", "--no-warmup", "--no-webui", "--offline", "--no-cache-idle-slots"]
    switches += ["--embeddings"] if given["pooling"] else []
    return [given["binary"], *child.flags(arguments, switches)]


if __name__ == "__main__":
    sys.exit(main())
