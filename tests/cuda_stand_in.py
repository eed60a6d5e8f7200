"""What an image with CUDA has as a program, for machines without: the same server, of the package xllamacpp, behind the arguments."""

LLAMA_SERVER = """#!{python}
import argparse, os, sys, xllamacpp
parser = argparse.ArgumentParser()
for name in ("--model", "--host"):
    parser.add_argument(name)
for name in ("--port", "--ctx-size", "--parallel", "--cache-ram"):
    parser.add_argument(name, type=int)
given, _ = parser.parse_known_args()
params = xllamacpp.CommonParams()
params.model.path, params.hostnames, params.port = given.model, [given.host], given.port
params.n_ctx, params.n_parallel, params.cache_ram_mib, params.use_jinja = given.ctx_size, given.parallel, given.cache_ram, True
server = xllamacpp.Server(params)
print("llama-server serves", flush=True)
sys.stdin.read()
"""
