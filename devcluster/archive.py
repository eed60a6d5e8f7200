"""What `make up` compiles, in one file: written by one machine, taken by others by its SHA-256.

It holds the built tools, and the layers of images that need a Debian mirror or a C compiler. The first member, `index.json`,
names every other one with its digest and size. The same content gives the same bytes on every machine with the same zlib.
"""

import argparse
import functools
import gzip
import hashlib
import io
import json
import re
import shutil
import sys
import tarfile
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from devcluster import system_images, toolchain
from devcluster.cache import SAY_EVERY_S, cache_root, hold, locked, say
from devcluster.download import DownloadError, download, shown
from devcluster.layout import ClusterError
from devcluster.oci import EPOCH, cached_layer
from devcluster.toolchain import TOOLCHAIN, Tool, ToolchainError

BUILD = Path(__file__).resolve().parent.parent / "build"
_INDEX = "index.json"
_CHUNK = 1 << 20


class ArchiveError(ToolchainError):
    """An archive cannot be written or taken; the message says what to do."""


def _tools() -> list[Tool]:
    return [tool for tool in TOOLCHAIN if not tool.on_demand]


def _layers() -> list[str]:
    """Names of the layers that this commit wants."""
    return sorted((system_images.base_layer_name(), system_images.prometheus_layer_name(), system_images.pause_layer_name()))


def _facts(path: Path) -> dict[str, Any]:
    return {"sha256": toolchain.sha256(path), "bytes": path.stat().st_size}


def write(directory: Path = BUILD) -> tuple[Path, str]:
    """The archive of this commit in `directory`, and its SHA-256. Makes what is not made yet. Raises ToolchainError, ClusterError."""
    toolchain.ensure([tool.name for tool in _tools()])
    layers = [layer.path for layer in (system_images.base_layer(), system_images.prometheus_layer(), *system_images.pause().layers)]
    members = {f"tools/{tool.name}/{name}": toolchain.entry(tool) / name for tool in _tools() for name in sorted(tool.files)}
    members |= {f"images/{path.name}": path for path in layers}
    index = {
        "tools": {tool.name: {"key": toolchain.key(tool), "files": sorted(tool.files)} for tool in _tools()},
        "layers": sorted(path.name for path in layers),
        "members": {name: _facts(path) for name, path in sorted(members.items())},
    }
    content = json.dumps(index, indent=1, sort_keys=True).encode() + b"\n"
    target = directory / f"modelfleet-tools-{hashlib.sha256(content).hexdigest()[:12]}.tar.gz"
    fresh = target.with_name(f".{target.name}.partial")
    directory.mkdir(parents=True, exist_ok=True)
    say(f"archive: compressing {len(members)} files, {sum(path.stat().st_size for path in members.values()) / 1e6:.0f} MB")
    try:
        with fresh.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
            _fill(packed, content, members)
        fresh.replace(target)
    finally:
        fresh.unlink(missing_ok=True)
    return target, toolchain.sha256(target)


def _fill(packed: gzip.GzipFile, index: bytes, members: Mapping[str, Path]) -> None:
    said = time.monotonic()
    with tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as archive:

        def add(name: str, size: int, file: IO[bytes]) -> None:
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = size, EPOCH, 0o755 if name.startswith("tools/") else 0o644
            archive.addfile(info, file)

        add(_INDEX, len(index), io.BytesIO(index))
        for name, path in sorted(members.items()):
            if time.monotonic() - said >= SAY_EVERY_S / 2:
                said = time.monotonic()
                say(f"archive: compressing {name}")
            with path.open("rb") as file:
                add(name, path.stat().st_size, file)


def take(spec: str) -> None:
    """Put the content of `FILE-or-https-address@sha256:HEX` into the cache, unless it is there.

    Raises ArchiveError, before anything of the cache changes, unless all of it is what the digest and this commit want.
    """
    source, digest = _parse(spec)
    hold()
    root = cache_root() / "tools"
    with locked(root / ".lock", "toolchain"):
        note = root / f"archive-{digest}.json"
        if _is_here(note):
            say("archive: its tools are here already")
            return
        work = root / ".archive.partial"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            _take(source, digest, work)
            (work / _INDEX).replace(note)
        except OSError as error:
            raise ArchiveError(f"TOOLS: got {error} while taking {shown(source)}, want it in {cache_root()}; free space there") from None
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _is_here(note: Path) -> bool:
    try:
        json.loads(note.read_text())
    except (OSError, ValueError):
        return False
    layers = [system_images.images_cache() / name for name in _layers()]
    return all(path.exists() for path in layers) and not toolchain.missing([tool.name for tool in _tools()])


def _parse(spec: str) -> tuple[str, str]:
    source, _, digest = spec.rpartition("@sha256:")
    if not source or not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ArchiveError(
            f"TOOLS: got {shown(spec)}, want FILE@sha256:HEX or https://ADDRESS@sha256:HEX; take the line that make tools printed"
        )
    if source.startswith("http://"):
        raise ArchiveError(f"TOOLS: got {shown(source)}, want https; give an https address or a file")
    return source, digest


class _Hashed(io.RawIOBase):
    """What is read of a file, and the digest of it so far."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.sha256 = file, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.sha256.update(data)
        return data


def _take(source: str, digest: str, work: Path) -> None:
    started = time.monotonic()
    path = work / "download" if source.startswith("https://") else Path(source)
    if path.parent == work:
        try:
            download(source, path)
        except DownloadError as error:
            raise ArchiveError(f"TOOLS: {error}") from None
    try:
        file = path.open("rb")
    except OSError as error:
        raise ArchiveError(f"TOOLS: got {source} ({error.strerror}), want an archive; take the line that make tools printed") from None
    with file:
        size = path.stat().st_size
        say(f"archive: taking {shown(source)} ({size / 1e6:.0f} MB)")
        _want(hashlib.file_digest(file, "sha256").hexdigest(), digest, source, size)
        file.seek(0)
        # Read twice, so counted twice: nobody may change it between.
        hashed = _Hashed(file)
        index = _unpack(hashed, work, shown(source))
        while hashed.read(_CHUNK):
            pass
        _want(hashed.sha256.hexdigest(), digest, source, size)
    _place(index, work)
    say(f"archive: {len(index['tools'])} tools and {len(index['layers'])} layers in place after {time.monotonic() - started:.0f} s")


def _want(got: str, digest: str, source: str, size: int) -> None:
    if got != digest:
        raise ArchiveError(
            f"TOOLS: got sha256:{got} ({size} bytes) from {shown(source)}, want sha256:{digest}; get the file again, do not use this one"
        )


def _unpack(file: IO[bytes] | _Hashed, work: Path, origin: str) -> dict[str, Any]:
    """Write every member below `work`, once all of the index is what this commit wants."""
    try:
        with tarfile.open(fileobj=file, mode="r|gz") as archive:  # type: ignore[arg-type]
            first = archive.next()
            content = archive.extractfile(first) if first is not None and first.isfile() and first.name == _INDEX else None
            if content is None:
                raise ArchiveError(f"TOOLS: got {origin} without {_INDEX}, want an archive of make tools; write one with make tools")
            index = json.loads(text := content.read())
            _check(index, origin)
            (work / _INDEX).write_bytes(text)
            left = dict(index["members"])
            while (member := archive.next()) is not None:
                facts = left.pop(member.name, None)
                if facts is None or not member.isfile() or member.size != facts["bytes"]:
                    raise ArchiveError(f"TOOLS: got {member.name!r} in {origin}, want only the files that its index names; do not use it")
                _copy(archive.extractfile(member), work / member.name, facts["sha256"], origin)
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArchiveError(f"TOOLS: got {error} in {origin}, want an archive of make tools; write one with make tools") from None
    if left:
        raise ArchiveError(f"TOOLS: got {origin} without {', '.join(sorted(left))}, want all that its index names; write it again")
    return index


def _check(index: dict[str, Any], origin: str) -> None:
    """Raise ArchiveError unless the index has every tool of this commit, and names nothing that has no place in the cache."""
    tools = {tool.name: tool for tool in _tools()}
    lacking = [name for name, tool in tools.items() if index["tools"].get(name, {}).get("key") != toolchain.key(tool)]
    lacking += sorted(set(_layers()) - set(index["layers"]))
    if lacking:
        raise ArchiveError(
            f"TOOLS: got {origin} without this commit's {', '.join(lacking)}, want all of them; run make tools on this commit"
        )
    wanted = {f"tools/{name}/{file}" for name, tool in tools.items() for file in tool.files}
    wanted |= {f"images/{name}" for name in _layers()}
    odd = sorted(wanted ^ set(index["members"]))
    if odd:
        raise ArchiveError(f"TOOLS: got an index of {origin} that differs in {', '.join(odd)}, want this commit's files; do not use it")


def _copy(source: IO[bytes] | None, target: Path, digest: str, origin: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    counted = hashlib.sha256()
    with target.open("wb") as file:
        while source and (data := source.read(_CHUNK)):
            counted.update(data)
            file.write(data)
    if counted.hexdigest() != digest:
        raise ArchiveError(f"TOOLS: got sha256:{counted.hexdigest()} for {target.name} in {origin}, want sha256:{digest}; do not use it")
    target.chmod(0o755 if target.parent.parent.name == "tools" else 0o644)


def _place(index: dict[str, Any], work: Path) -> None:
    for tool in _tools():
        staged, entry = work / "tools" / tool.name, toolchain.entry(tool)
        if toolchain.is_intact(entry):
            continue
        toolchain.write_manifest(tool, staged)
        shutil.rmtree(entry, ignore_errors=True)
        staged.rename(entry)
    for name in _layers():
        staged = work / "images" / name
        cached_layer(system_images.images_cache() / name, functools.partial(_move, staged))


def _move(source: Path, target: Path) -> None:
    shutil.move(source, target)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m devcluster.archive", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("write", help="write the archive into build/, and print the line that uses it")
    commands.add_parser("take", help="put an archive into the cache").add_argument("spec", help="FILE-or-https-address@sha256:HEX")
    options = parser.parse_args(arguments)
    try:
        if options.command == "take":
            take(options.spec)
            return 0
        path, digest = write()
    except (ToolchainError, ClusterError) as error:
        say(f"error: {error}")
        return 1
    say(f"archive: {path.name} has {path.stat().st_size / 1e6:.0f} MB")
    print(f"make up TOOLS={path.relative_to(BUILD.parent)}@sha256:{digest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
