"""The arguments of llama.cpp's own server."""

from pathlib import Path

import xllamacpp

from model_server.llama_cpp import command

GIVEN = {
    "binary": "/app/llama-server",
    "model": "/models/blobs/sha256-1",
    "alias": "coder",
    "context": 8192,
    "parallel": 2,
    "prompt_cache_mib": 1024,
    "threads": 8,
    "slots_dir": "/cache/kept/",
    "pooling": 0,
}


def test_the_parser_of_the_pinned_build_knows_every_argument() -> None:
    library = next(Path(str(xllamacpp.__file__)).parent.glob("xllamacpp.*.so")).read_bytes()
    arguments = {part for kind in (0, 1, 4) for part in command({**GIVEN, "pooling": kind}, 5000) if part.startswith("--")}
    # A word of up to 7 letters stands in the code itself, cut in pieces.
    assert [name for name in arguments if len(name) > 7 and name.encode() + b"\0" not in library] == []
    assert {"--pooling", "--embeddings", "--ubatch-size", "--threads"} < arguments


def test_the_whole_model_goes_on_the_gpu_with_the_declared_context() -> None:
    line = " ".join(command(GIVEN, 5000))
    assert "--gpu-layers all" in line
    assert "--fit off" in line
    assert "--ctx-size 8192 --parallel 2 --cache-ram 1024" in line
    assert "--host 127.0.0.1 --port 5000" in line
    assert "--embeddings" not in line


def test_a_text_of_embeddings_is_read_whole() -> None:
    line = " ".join(command({**GIVEN, "pooling": 4}, 5000))
    assert "--batch-size 4096 --ubatch-size 4096 --pooling rank" in line
