"""Which files a model consists of, as its source lists them: an OCI artifact, a list of SHA-256, or a repository of a hub."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin

from model_sync import gguf
from model_sync.access import Access
from model_sync.source import Source, document
from model_sync.store import MODEL_LAYER, StoreError, blobs, file_digest
from model_sync.tree import TITLE

LIST = "SHA256SUMS"
HUBS = {"huggingface": "https", "huggingface+http": "http"}
_LINE = re.compile(r"([0-9a-f]{64}) [ *](?:\./)?(.+)")
_HUB = re.compile(r"([^/]+)/([^/:]+/[^/:]+)(?:/([^:]+))?:([0-9a-f]{40})")
_MOST = 1000
"""Of files in one model; a hub also lists no more on a page."""


@dataclass(frozen=True)
class File:
    """One file of a model."""

    path: str
    source: Source
    digest: str = ""
    """Its SHA-256, with `sha256:` before it; empty where the source has only git's."""
    size: int | None = None
    git: str = ""
    """Git's name of its content: SHA-1 of `blob SIZE`, a zero and the content."""


def git_name(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def of_artifact(content: bytes, where: str, source: Callable[[str], Source]) -> list[File]:
    """The files of an OCI artifact, by its manifest; `source` has the blob of a digest. Nothing where it is a model in Ollama's form."""
    blobs(content, Path(where))
    layers: list[dict[str, Any]] = json.loads(content)["layers"]
    if any(layer["mediaType"] == MODEL_LAYER for layer in layers):
        return []
    found: list[File] = []
    for layer in layers:
        notes = layer.get("annotations")
        title = notes.get(TITLE) if isinstance(notes, dict) else None
        if isinstance(title, str):
            found.append(File(title, source(layer["digest"]), layer["digest"], layer["size"]))
    return _distinct(where, found)


def of_list(url: str, content: bytes, access: Access) -> list[File]:
    """The files of a list as `sha256sum` writes it, which lie beside it."""
    found: list[File] = []
    for line in content.decode(errors="replace").splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            raise StoreError(f"{url}: got the line {line[:80]!r}, want a SHA-256, two spaces and a path; write it with sha256sum")
        # A path that leads elsewhere is refused, or left out, by its name.
        found.append(File(match[2], Source(urljoin(url, quote(match[2])), access=access), f"sha256:{match[1]}"))
    return _distinct(url, found)


def of_hub(source: str, access: Access, attempts: int) -> list[File]:
    """The files of a repository at one commit; only those of one GGUF, where the source names it. Raises StoreError or SourceError.

    Source of the API: huggingface.co/docs/hub, and huggingface_hub, HfApi.list_repo_tree.
    """
    scheme, _, rest = source.partition("://")
    found = _HUB.fullmatch(rest)
    if scheme not in HUBS or found is None:
        raise StoreError(f"{source}: got another form, want {scheme}://host/owner/name[/file.gguf]:commit; correct the source")
    host, repository, name, commit = found.groups()
    base = f"{HUBS[scheme]}://{host}"
    about = _json(f"{base}/api/models/{repository}/revision/{commit}", access, attempts)
    got = about.get("sha") if isinstance(about, dict) else None
    if got != commit:
        raise StoreError(f"{source}: got commit {str(got)[:40]}, want {commit}; the hub has another revision, ask who runs it")
    listed = _json(f"{base}/api/models/{repository}/tree/{commit}?recursive=true", access, attempts)
    here = f"{base}/{repository}/resolve/{commit}"
    if not isinstance(listed, list) or len(listed) >= _MOST:
        raise StoreError(f"{source}: got no list of fewer than {_MOST} files, want one; use a repository of this model alone")
    files = _distinct(source, [file for entry in listed if (file := _of_entry(entry, here, access, source))])
    wanted = gguf.parts_of(name) if name else [file.path for file in files]
    by_path = {file.path: file for file in files}
    if missing := [path for path in wanted if path not in by_path]:
        raise StoreError(f"{source}: got no {missing[0]} at that commit, want it; correct the source")
    return [by_path[path] for path in wanted]


def _of_entry(entry: Any, here: str, access: Access, source: str) -> File | None:
    try:
        if entry["type"] != "file":
            return None
        path, size, git, stored = entry["path"], entry["size"], entry["oid"], entry.get("lfs")
        if not isinstance(path, str) or type(size) is not int or size < 0:
            raise ValueError("a file without path or size")
        from_ = Source(f"{here}/{quote(path)}", access=access)
        if stored is None:
            if not re.fullmatch("[0-9a-f]{40}", git):
                raise ValueError(f"git's name {str(git)[:40]!r}")
            return File(path, from_, size=size, git=git)
        if not re.fullmatch("[0-9a-f]{64}", stored["oid"]) or stored["size"] != size:
            raise ValueError(f"the SHA-256 or the size of {path[:100]}")
        return File(path, from_, f"sha256:{stored['oid']}", size)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(f"{source}: got a list of files in another form ({str(error)[:100]}), want a hub's; correct the source") from None


def _json(url: str, access: Access, attempts: int) -> Any:
    try:
        return json.loads(document(Source(url, access=access), attempts))
    except (ValueError, RecursionError):
        raise StoreError(f"{url}: got no JSON, want a hub's answer; correct the source") from None


def _distinct(where: str, files: list[File]) -> list[File]:
    if len(files) > _MOST:
        raise StoreError(f"{where}: got {len(files)} files, want at most {_MOST}; publish this model alone")
    if len({file.path for file in files}) != len(files):
        raise StoreError(f"{where}: got a path twice, want each once; publish the model again")
    return files


def require_digest(what: str, content: bytes, digest: str) -> None:
    """Raises StoreError unless a manifest or a list is the declared one; an empty digest is any."""
    found = file_digest(content)
    if digest and found != digest:
        raise StoreError(f"{what}: got manifest {found}, want {digest}; do not use it, or correct models.<name>.digest")
