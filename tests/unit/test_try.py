"""Which machines `modelfleet try` runs on, and which model it serves how."""

import dataclasses
from pathlib import Path

import pytest

from modelfleet import environment, host
from modelfleet.models import Model, context

USABLE = host.Facts("Linux", "x86_64", "glibc", host.CPU_FEATURES | {"sse2"}, ())


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({}, ""),
        ({"machine": "aarch64", "cpu_flags": ()}, ""),
        ({"system": "Darwin", "machine": "arm64", "libc": ""}, "system: got Darwin, want Linux; "),
        ({"system": "Windows", "machine": "AMD64"}, "system: got Windows, want Linux; "),
        ({"machine": "riscv64"}, "processor: got riscv64, want one of x86_64, aarch64; "),
        ({"libc": ""}, "C library: got another one, musl perhaps, want glibc; "),
        ({"cpu_flags": host.CPU_FEATURES - {"avx2"}}, "processor: got none of avx2 in /proc/cpuinfo, "),
        ({"absent_libraries": ["libgomp.so.1"]}, "libgomp.so.1: got nothing, want it for llama.cpp; "),
    ],
)
def test_a_machine_without_a_llama_cpp_wheel_is_refused(change: dict[str, object], line: str) -> None:
    refusal = host.refusal(dataclasses.replace(USABLE, **change))
    assert refusal.startswith(line)
    assert bool(refusal) == bool(line)
    assert "\n" not in refusal


@pytest.mark.parametrize(("trained", "served"), [(8192, 8192), (131072, 8192), (2048, 2048), (128, 512)])
def test_the_context_is_the_models_own_within_bounds(trained: int, served: int) -> None:
    assert context(Model("m", Path("m.gguf"), trained), None) == served


def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert host.cache_path() == tmp_path / ".cache" / "modelfleet"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert host.cache_path() == tmp_path / "elsewhere" / "modelfleet"


def test_only_what_is_served_is_installed() -> None:
    names = {name for name, _ in environment.pins(environment.LOCK.read_text())}
    assert {"aiohttp", "pydantic", "redis", "prometheus-client", "xllamacpp"} < names
    assert len(names) <= 23, names
    whole = dict(environment.pins((environment.TREE / "requirements.lock").read_text()))
    assert [(name, version) for name, version in environment.pins(environment.LOCK.read_text()) if whole[name] != version] == []
