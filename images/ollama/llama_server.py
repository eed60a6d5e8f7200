#!/usr/bin/python3
"""llama-server for the embedded Ollama image: the command line of llama.cpp's server over PyPI's build of the same server.

Ollama runs models through a `llama-server` binary that no package registry ships. `xllamacpp` does ship llama.cpp's HTTP
server as a library, so this script translates the flags that Ollama 0.32.15 passes. An unknown flag is an error:
ignoring one would mean running a model other than as asked. Official Ollama images carry the native binary instead.
"""

import argparse
import os
import sys
import threading
from typing import Any

import xllamacpp as _xllamacpp

xllamacpp: Any = _xllamacpp

_FLASH = {"on": "LLAMA_FLASH_ATTN_TYPE_ENABLED", "off": "LLAMA_FLASH_ATTN_TYPE_DISABLED", "auto": "LLAMA_FLASH_ATTN_TYPE_AUTO"}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="llama-server", allow_abbrev=False)
    parser.add_argument("--model")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("-c", dest="context", type=int, default=0)
    parser.add_argument("-np", dest="parallel", type=int, default=1)
    parser.add_argument("-b", dest="batch", type=int)
    parser.add_argument("-ub", dest="micro_batch", type=int)
    parser.add_argument("-t", "--threads", dest="threads", type=int)
    parser.add_argument("--keep", type=int)
    parser.add_argument("--flash-attn", choices=sorted(_FLASH), default="auto")
    parser.add_argument("--load-mode", choices=["none", "mmap"], default="mmap")
    parser.add_argument("--chat-template")
    parser.add_argument("--embedding", action="store_true")
    parser.add_argument("--context-shift", action="store_true")
    parser.add_argument("--no-jinja", action="store_true")
    parser.add_argument("--list-devices", action="store_true")
    parser.add_argument("-ngl", dest="gpu_layers", type=int, default=0)
    for quiet in ("--no-webui", "--offline", "--verbose", "--no-log-prefix", "--no-log-timestamps"):
        parser.add_argument(quiet, action="store_true")
    parser.add_argument("--log-verbosity", type=int, default=3)
    return parser.parse_args(arguments)


def parameters(options: argparse.Namespace) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = options.model
    params.hostnames = [options.host]
    params.port = options.port
    params.n_ctx = options.context
    params.n_parallel = options.parallel
    params.ctx_shift = options.context_shift
    params.embedding = options.embedding
    params.use_jinja = not options.no_jinja
    params.n_gpu_layers = 0
    # Upstream reserves 8 GiB of host memory for old prompts; a pod of ours says what it can spare.
    params.cache_ram_mib = int(os.environ.get("LLAMA_ARG_CACHE_RAM", "256"))
    params.verbosity = options.log_verbosity
    params.flash_attn_type = getattr(xllamacpp.llama_flash_attn_type, _FLASH[options.flash_attn])
    params.endpoint_props = True
    if options.load_mode == "none":
        params.load_mode = xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_NONE
    for value, name in ((options.batch, "n_batch"), (options.micro_batch, "n_ubatch"), (options.keep, "n_keep")):
        if value is not None:
            setattr(params, name, value)
    if options.chat_template is not None:
        params.chat_template = options.chat_template
    if options.threads is not None:
        params.cpuparams.n_threads = options.threads
    return params


def main() -> int:
    options = parse(sys.argv[1:])
    if options.list_devices:
        print("Available devices:")
        return 0
    if options.model is None:
        # Ollama starts the server without a model to read this line, and ends it.
        print(f"system_info: {xllamacpp.get_system_info()}", file=sys.stderr, flush=True)
        threading.Event().wait(30)
        return 1
    server = xllamacpp.Server(parameters(options))
    print(f"listening on {server.listening_address}", file=sys.stderr, flush=True)
    threading.Event().wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
