"""What `modelfleet try` refuses, each in one line and before anything is fetched."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from gguf import GGUFWriter

from tests import tiny_gguf
from tests.service.conftest import SCRIPT
from tests.service.processes import ROOT
from tests.service.trying import TRY, environment, refused

UNREACHABLE = {"PIP_INDEX_URL": "http://127.0.0.1:1/", "UV_DEFAULT_INDEX": "http://127.0.0.1:1/"}


def gguf(path: Path, architecture: str, **facts: object) -> Path:
    """A file of metadata alone."""
    writer = GGUFWriter(str(path), architecture)
    for key, value in facts.items():
        name = key.replace("__", ".")
        writer.add_uint16(name, value) if isinstance(value, int) else writer.add_string(name, str(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def unusable(work: Path) -> dict[str, tuple[Path, str]]:
    """Kind of file to the file and what is said of it."""
    text, damaged = work / "text.gguf", work / "damaged.gguf"
    text.write_text("version https://git-lfs.github.com/spec/v1")
    # One value, whose key is said to have 2^62 bytes.
    damaged.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(8) + (1).to_bytes(8, "little") + (1 << 62).to_bytes(8, "little"))
    cut = tiny_gguf.make(work / "cut.gguf", SCRIPT)
    os.truncate(cut, 1000)
    return {
        "absent": (work / "absent.gguf", "got nothing, want a GGUF file"),
        "directory": (work, "got a directory, want a GGUF file"),
        "text": (text, "got another file type, want GGUF; check the file"),
        "damaged": (damaged, "; the file is damaged"),
        "cut": (cut, "the file is cut off"),
        "split": (gguf(work / "split.gguf", "llama", split__count=3), "got one of 3 parts, want a model in one file"),
        "projector": (gguf(work / "mmproj.gguf", "clip"), "got a projector for images, want a language model"),
        "adapter": (gguf(work / "lora.gguf", "llama", general__type="adapter"), "got an adapter, want a language model"),
        "template": (
            gguf(work / "template.gguf", "llama", tokenizer__chat_template="{% include 'x' %}"),
            "want one that reaches nothing outside of it",
        ),
    }


@pytest.mark.parametrize("kind", ["absent", "directory", "text", "damaged", "cut", "split", "projector", "adapter", "template"])
def test_a_file_that_is_no_model(tmp_path: Path, kind: str) -> None:
    path, said = unusable(tmp_path)[kind]
    line = refused(tmp_path / "home", "--model", str(path))
    assert line.startswith("--model "), line
    assert said in line
    assert not (tmp_path / "home" / ".cache").exists(), "before anything is written"


def test_a_model_whose_weights_are_cut_off(tmp_path: Path) -> None:
    path = tiny_gguf.make(tmp_path / "tiny.gguf", SCRIPT)
    os.truncate(path, path.stat().st_size - 1000)
    line = refused(tmp_path / "home", "--model", str(path))
    assert line.startswith("model server: got "), line
    assert "tensor" in line
    assert "not within the file bounds" in line


def test_a_context_that_the_model_does_not_have(tmp_path: Path) -> None:
    path = tiny_gguf.make(tmp_path / "tiny.gguf", SCRIPT, context=2048)
    for asked in ("100", "4096"):
        line = refused(tmp_path / "home", "--model", str(path), "--context", asked)
        assert line == f"--context: got {asked}, want 512..2048, what tiny was trained for; correct it"


def test_a_model_larger_than_the_memory(tmp_path: Path) -> None:
    path = tiny_gguf.make(tmp_path / "tiny.gguf", SCRIPT)
    os.truncate(path, 1 << 42)
    assert "got 4398.0 GB of weights, want at most " in refused(tmp_path / "home", "--model", str(path))


@pytest.mark.parametrize("port", ["0", "65536"])
def test_a_port_that_is_none(tmp_path: Path, port: str) -> None:
    path = tiny_gguf.make(tmp_path / "tiny.gguf", SCRIPT)
    line = refused(tmp_path / "home", "--model", str(path), "--port", port)
    assert line == f"--port: got {port}, no port, want a free port; choose another one, or leave it out"


def with_mounts(script: str) -> Sequence[str]:
    """The command after mounts that it alone sees."""
    return ["unshare", "--mount", "sh", "-euc", f'{script}; exec "$@"', "sh", *TRY]


def test_a_processor_without_avx2(tmp_path: Path) -> None:
    old = tmp_path / "cpuinfo"
    old.write_text(Path("/proc/cpuinfo").read_text().replace(" avx2", "").replace(" fma", ""))
    line = refused(tmp_path / "home", argv=with_mounts(f"mount --bind {old} /proc/cpuinfo"))
    assert line.startswith("processor: got none of avx2, fma in /proc/cpuinfo, want them for llama.cpp")
    assert not (tmp_path / "home" / ".cache").exists(), "before anything is written"


def test_another_processor(tmp_path: Path) -> None:
    assert refused(tmp_path / "home", argv=["setarch", "i686", *TRY]).startswith("processor: got i686, want one of x86_64, aarch64; ")


def test_a_machine_without_the_libraries(tmp_path: Path) -> None:
    listed = subprocess.run(["ldconfig", "-p"], check=True, capture_output=True, text=True).stdout
    library = Path(next(line.rpartition("=> ")[2] for line in listed.splitlines() if "libgomp.so.1" in line)).resolve()
    (tmp_path / "empty").touch()
    line = refused(tmp_path / "home", argv=with_mounts(f"mount --bind {tmp_path / 'empty'} {library}"))
    assert line == "libgomp.so.1: got nothing, want it for llama.cpp; install it, on Debian: apt-get install libgomp1"


def test_a_full_disk(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    argv = with_mounts(f"mount -t tmpfs -o size=50m none {cache}")
    line = refused(tmp_path / "home", argv=argv, XDG_CACHE_HOME=str(cache), **UNREACHABLE)
    assert line.startswith(f"{cache / 'modelfleet' / 'models'}: got 5"), line
    assert line.endswith(" MB for the model and its download; free space, or set XDG_CACHE_HOME to another disk")
    model = tiny_gguf.make(tmp_path / "tiny.gguf", SCRIPT)
    argv = [*with_mounts(f"mount -t tmpfs -o size=16k none {cache}"), "--model", str(model)]
    line = refused(tmp_path / "home", argv=argv, XDG_CACHE_HOME=str(cache))
    assert line.startswith(f"{cache / 'modelfleet'}: got 0 MB free, want 30 MB for logs and byte code; "), line


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    line = refused(home, argv=with_mounts(f"mount -t tmpfs -o ro none {home}"))
    assert line == f"{home}/.cache: got Read-only file system, want one to write to; set XDG_CACHE_HOME to another one"


def test_an_unknown_command_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "modelfleet", "tyr"], cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=30
    )  # fmt: skip
    assert done.returncode == 2
    assert "invalid choice: 'tyr'" in done.stderr
