"""The archive of tools: the same bytes for the same content, taken whole by its digest, or refused with one line and nothing left."""

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from devcluster import archive, pinned, system_images, toolchain
from tests.archives import BASE, PAUSE, PROMETHEUS, TOOL, machine


@pytest.fixture
def writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that has everything."""
    return machine(tmp_path / "writer", monkeypatch, full=True)


def written(tmp_path: Path) -> tuple[Path, str]:
    return archive.write(tmp_path / "build")


def everything(cache: Path) -> set[str]:
    """What a failed try must not add to; locks are no content."""
    return {str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file() and path.name not in (".lock", ".in-use")}


def test_the_same_content_gives_the_same_bytes(tmp_path: Path, writer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, digest = written(tmp_path)
    assert digest == hashlib.sha256(first.read_bytes()).hexdigest()
    for path in writer.rglob("*"):
        path.touch()
    manifest = toolchain.entry(TOOL) / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"wall_s": 99}))
    second, again = archive.write(tmp_path / "elsewhere")
    assert (second.name, again) == (first.name, digest)
    with tarfile.open(first) as file:
        assert [member.name for member in file] == [
            "index.json",
            *sorted([f"images/{BASE}", f"images/{PAUSE}", f"images/{PROMETHEUS}", "tools/hello/hello"]),
        ]


def test_an_empty_machine_has_all_of_it_afterwards_and_compiles_nothing(
    tmp_path: Path, writer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, digest = written(tmp_path)
    reader = machine(tmp_path / "reader", monkeypatch)
    monkeypatch.setenv("PATH", "")
    archive.take(f"{file}@sha256:{digest}")
    binary = toolchain.ensure([TOOL.name]) / "hello"
    assert binary.read_bytes() == b"hello, compiled"
    assert binary.stat().st_mode & 0o777 == 0o755
    assert system_images.base_layer().path.read_bytes() == b"base"
    assert "building" not in capsys.readouterr().err
    assert not list(reader.glob("tools/.archive*"))
    archive.take(f"{tmp_path}/gone@sha256:{digest}")
    assert "its tools are here already" in capsys.readouterr().err


def test_what_is_damaged_afterwards_is_taken_again(tmp_path: Path, writer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, digest = written(tmp_path)
    machine(tmp_path / "reader", monkeypatch)
    archive.take(f"{file}@sha256:{digest}")
    (toolchain.entry(TOOL) / "hello").write_bytes(b"damaged")
    (system_images.images_cache() / PAUSE).unlink()
    archive.take(f"{file}@sha256:{digest}")
    assert toolchain.is_intact(toolchain.entry(TOOL))
    assert (system_images.images_cache() / PAUSE).exists()


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("{file}", r"TOOLS: got .*, want FILE@sha256:HEX or https://ADDRESS@sha256:HEX"),
        ("{file}@sha256:12", r"TOOLS: got .*, want FILE@sha256:HEX"),
        ("{file}@sha256:{zeros}", r"TOOLS: got sha256:{digest} \(\d+ bytes\) from .*, want sha256:{zeros}; get the file again"),
        ("{short}@sha256:{digest}", r"TOOLS: got sha256:.* \(100 bytes\) from .*, want sha256:{digest}"),
        ("{file}.gone@sha256:{digest}", r"TOOLS: got .*gone \(No such file or directory\), want an archive"),
        ("{parent}@sha256:{digest}", r"TOOLS: got .*\(Is a directory\), want an archive"),
        ("http://user:secret@example.com/x?token=secret@sha256:{digest}", r"TOOLS: got http://example.com/x, want https"),
    ],
)
def test_what_is_not_that_file_is_refused(tmp_path: Path, writer: Path, monkeypatch: pytest.MonkeyPatch, spec: str, said: str) -> None:
    file, digest = written(tmp_path)
    short = tmp_path / "short"
    short.write_bytes(file.read_bytes()[:100])
    values = {"file": str(file), "parent": str(file.parent), "short": str(short), "digest": digest, "zeros": "0" * 64}
    reader = machine(tmp_path / "reader", monkeypatch)
    for name, value in values.items():
        spec, said = spec.replace(f"{{{name}}}", value), said.replace(f"{{{name}}}", value)
    with pytest.raises(archive.ArchiveError, match=said) as caught:
        archive.take(spec)
    assert "\n" not in str(caught.value)
    assert everything(reader) == set()


def test_an_archive_of_another_commit_is_refused_by_the_tools_that_it_lacks(
    tmp_path: Path, writer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, digest = written(tmp_path)
    reader = machine(tmp_path / "reader", monkeypatch)
    (pinned.TOOLS / "hello" / "go.sum").write_text("another\n")
    with pytest.raises(archive.ArchiveError, match=r"without this commit's hello, want all of them; run make tools on this commit"):
        archive.take(f"{file}@sha256:{digest}")
    assert everything(reader) == set()


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(content), kind, "/etc/passwd"
    return info, content


def packed(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> str:
    """Write an archive by hand; what names it."""
    with tarfile.open(path, "w:gz") as file:
        for info, content in members:
            file.addfile(info, io.BytesIO(content))
    return f"{path}@sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def index(**changed: Any) -> tuple[tarfile.TarInfo, bytes]:
    facts = {"sha256": hashlib.sha256(b"hello").hexdigest(), "bytes": 5}
    whole: dict[str, Any] = {
        "tools": {"hello": {"key": toolchain.key(TOOL), "files": ["hello"]}},
        "layers": [BASE, PAUSE, PROMETHEUS],
        "members": dict.fromkeys(("tools/hello/hello", f"images/{BASE}", f"images/{PAUSE}", f"images/{PROMETHEUS}"), facts),
    }
    whole["members"] |= changed.pop("members", {})
    whole |= changed
    return member("index.json", json.dumps(whole).encode())


HELLO = ("tools/hello/hello", b"hello")
MALICE: dict[str, Any] = {
    "a path above": (lambda: [index(), member(*HELLO), member("../../evil", b"x")], r"got '../../evil' in .*, want only the files"),
    "an absolute path": (lambda: [index(), member("/etc/evil", b"x")], r"got '/etc/evil' in "),
    "a foreign name": (lambda: [index(), member("tools/hello/other", b"x")], r"got 'tools/hello/other' in "),
    "a link": (lambda: [index(), member("tools/hello/hello", kind=tarfile.SYMTYPE)], r"got 'tools/hello/hello' in "),
    "a hard link": (lambda: [index(), member("tools/hello/hello", kind=tarfile.LNKTYPE)], r"got 'tools/hello/hello' in "),
    "a device": (lambda: [index(), member("tools/hello/hello", kind=tarfile.CHRTYPE)], r"got 'tools/hello/hello' in "),
    "twice the same": (lambda: [index(), member(*HELLO), member(*HELLO)], r"got 'tools/hello/hello' in "),
    "another size": (lambda: [index(), member("tools/hello/hello", b"hello, and more")], r"got 'tools/hello/hello' in "),
    "another content": (lambda: [index(), member("tools/hello/hello", b"hullo")], r"got sha256:.* for hello in .*, want sha256:"),
    "something missing": (lambda: [index()], r"without images/.*, tools/hello/hello, want all that its index names"),
    "no index": (lambda: [member(*HELLO)], r"without index.json, want an archive of make tools"),
    "an index that is a link": (lambda: [member("index.json", kind=tarfile.SYMTYPE)], r"without index.json"),
    "no JSON": (lambda: [member("index.json", b"{")], r"want an archive of make tools; write one with make tools"),
    "other JSON": (lambda: [member("index.json", b"[]")], r"want an archive of make tools; write one with make tools"),
    "a file that the tool has not": (
        lambda: [index(members={"tools/hello/../../x": {}})],
        r"differs in tools/hello/../../x, want this commit's files",
    ),
    "a layer above": (
        lambda: [index(layers=[BASE, PAUSE, PROMETHEUS, "../x.tar"], members={"images/../x.tar": {}})],
        r"differs in images/../x.tar",
    ),
    "the layer of another commit": (
        lambda: [index(layers=["base-000000000000.tar", PAUSE, PROMETHEUS])],
        rf"without this commit's {BASE}, want all of them; run make tools on this commit",
    ),
}


@pytest.mark.parametrize("malice", MALICE)
def test_a_digest_does_not_excuse_what_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, malice: str) -> None:
    reader = machine(tmp_path / "reader", monkeypatch)
    members, said = MALICE[malice]
    with pytest.raises(archive.ArchiveError, match=said) as caught:
        archive.take(packed(tmp_path / "file", members()))
    assert "\n" not in str(caught.value)
    assert everything(reader) == set()
    assert not (tmp_path / "x").exists()


NO_ARCHIVES = {"empty": b"", "text": b"no archive", "no tar": gzip.compress(b"no tar"), "cut short": gzip.compress(b"x" * 20000)[:60]}


# By name: gzip's header has the time in it, and pytest-xdist wants the same test ids from each worker.
@pytest.mark.parametrize("content", NO_ARCHIVES.values(), ids=NO_ARCHIVES)
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    reader = machine(tmp_path / "reader", monkeypatch)
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(archive.ArchiveError, match=r"TOOLS: got .*, want an archive of make tools; write one with make tools"):
        archive.take(f"{tmp_path / 'file'}@sha256:{hashlib.sha256(content).hexdigest()}")
    assert everything(reader) == set()


def test_a_full_disk_leaves_nothing(tmp_path: Path, writer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, digest = written(tmp_path)
    reader = machine(tmp_path / "reader", monkeypatch)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive, "_copy", full)
    with pytest.raises(archive.ArchiveError, match=r"TOOLS: got .*No space left on device while taking .*; free space there"):
        archive.take(f"{file}@sha256:{digest}")
    assert everything(reader) == set()


def test_the_commands_say_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    machine(tmp_path / "reader", monkeypatch)
    assert archive.main(["take", "nothing"]) == 1
    assert capsys.readouterr().err.startswith("error: TOOLS: got nothing, want FILE@sha256:HEX")
    machine(tmp_path / "writer", monkeypatch, full=True)
    monkeypatch.setattr(archive, "BUILD", tmp_path / "build")
    monkeypatch.setattr(archive.write, "__defaults__", (tmp_path / "build",))
    assert archive.main(["write"]) == 0
    line = capsys.readouterr().out
    assert line.startswith("make up TOOLS=build/modelfleet-tools-")
    machine(tmp_path / "other", monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert archive.main(["take", line.strip().removeprefix("make up TOOLS=")]) == 0
