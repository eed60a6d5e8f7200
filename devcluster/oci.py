"""Assemble OCI images from cached layers and push them: what a builder does, without a daemon, in milliseconds.

Layers are uncompressed tar files with fixed owners and times, so the same input gives the same digest on every machine.
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from devcluster.cache import hold, locked

_LAYER = "application/vnd.oci.image.layer.v1.tar"
_CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
EPOCH = 1_764_000_000
"""Time of every file in every layer: a constant, so that digests depend on content alone."""


class RegistryError(Exception):
    """The registry refused something."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    digest: str
    size: int
    path: Path


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """The part of an image configuration that decides how a container starts; field names as in the OCI specification."""

    entrypoint: Sequence[str] = ()
    cmd: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    working_dir: str = ""
    exposed_ports: Sequence[str] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Image:
    name: str
    """Repository, as in a pod's image field, without tag or digest."""
    layers: Sequence[Layer]
    config: bytes
    manifest: bytes

    @property
    def digest(self) -> str:
        return _digest(self.manifest)

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.digest}"


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def existing_layer(path: Path) -> Layer:
    """A tar file as a layer. The digest is kept beside it, with the size and time that it was taken at."""
    stat = path.stat()
    note = path.with_name(path.name + ".digest")
    stamp = f"{stat.st_size} {stat.st_mtime_ns}"
    try:
        digest, _, recorded = note.read_text().partition(" ")
        if recorded == stamp:
            return Layer(digest=digest, size=stat.st_size, path=path)
    except FileNotFoundError:
        pass
    with path.open("rb") as file:
        digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    note.write_text(f"{digest} {stamp}")
    return Layer(digest=digest, size=stat.st_size, path=path)


def cached_layer(path: Path, make: Callable[[Path], object]) -> Layer:
    """The layer at `path`; made once by `make(temporary path)`, whoever asks at the same time, and renamed into place."""
    hold()
    with locked(path.with_name(f".{path.name}.lock"), f"images: {path.stem}"):
        if not path.exists():
            fresh = path.with_name(f".{path.name}.partial")
            make(fresh)
            fresh.replace(path)
        return existing_layer(path)


def write_tree(target: Path, trees: Iterable[tuple[str, Path]], modes: Mapping[str, int] | None = None) -> None:
    """Tar files and directories under their paths in the image; owners are root, times `EPOCH`.

    `modes` gives the mode of a path in the image; others get 0755 for directories and executables, 0644 for the rest.
    """
    seen: set[str] = set()
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:

        def add(name: str, source: Path | None) -> None:
            if name in seen:
                return
            seen.add(name)
            info = tarfile.TarInfo(name)
            info.mtime = EPOCH
            if source is None or source.is_dir():
                info.type, info.mode = tarfile.DIRTYPE, (modes or {}).get(name, 0o755)
                archive.addfile(info)
                return
            data = source.read_bytes()
            info.size = len(data)
            info.mode = (modes or {}).get(name, 0o755 if os.access(source, os.X_OK) else 0o644)
            archive.addfile(info, io.BytesIO(data))

        for prefix, source in trees:
            parts = prefix.strip("/").split("/")
            for depth in range(1, len(parts)):
                add("/".join(parts[:depth]), None)
            add("/".join(parts), source)
            for path in sorted(source.rglob("*")) if source.is_dir() else []:
                if "__pycache__" not in path.parts or path.suffix != ".py":
                    add("/".join([*parts, *path.relative_to(source).parts]), path)


def assemble(name: str, layers: Sequence[Layer], runtime: RuntimeConfig) -> Image:
    config: dict[str, object] = {
        "Entrypoint": list(runtime.entrypoint),
        "Cmd": list(runtime.cmd),
        "Env": [f"{key}={value}" for key, value in runtime.env.items()],
        "User": runtime.user,
        "WorkingDir": runtime.working_dir,
        "ExposedPorts": {port: {} for port in runtime.exposed_ports},
        "Labels": dict(runtime.labels),
    }
    document = {
        "architecture": "amd64",
        "os": "linux",
        "config": {key: value for key, value in config.items() if value},
        "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
    }
    encoded = json.dumps(document, separators=(",", ":")).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": _CONFIG, "digest": _digest(encoded), "size": len(encoded)},
        "layers": [{"mediaType": _LAYER, "digest": layer.digest, "size": layer.size} for layer in layers],
    }
    return Image(name=name, layers=layers, config=encoded, manifest=json.dumps(manifest, separators=(",", ":")).encode())


def repository(name: str) -> str:
    """The path that a runtime asks a mirror for: `docker.io/library/x` for `x`, no host otherwise."""
    first, _, rest = name.partition("/")
    if not rest:
        return f"library/{name}"
    return rest if "." in first or ":" in first or first == "localhost" else name


def _client(name: str, registry: str) -> httpx.Client:
    return httpx.Client(base_url=f"http://{registry}/v2/{repository(name)}/", timeout=60.0, trust_env=False)


def has_tag(name: str, registry: str, tag: str) -> bool:
    with _client(name, registry) as client:
        return client.head(f"manifests/{tag}", headers={"Accept": f"{MANIFEST}, {INDEX}"}).status_code == 200


def push_manifest(name: str, registry: str, tag: str, content: bytes, media_type: str) -> None:
    """Raises RegistryError."""
    with _client(name, registry) as client:
        _check(client.put(f"manifests/{tag}", content=content, headers={"Content-Type": media_type}), f"{name}:{tag}")


def push(image: Image, registry: str, tag: str) -> bool:
    """Push what the registry lacks. Returns whether anything was sent. Raises RegistryError."""
    with _client(image.name, registry) as client:
        present = client.head(f"manifests/{tag}", headers={"Accept": MANIFEST})
        if present.headers.get("docker-content-digest") == image.digest:
            return False
        for layer in image.layers:
            if client.head(f"blobs/{layer.digest}").status_code != 200:
                with layer.path.open("rb") as file:
                    _upload(client, layer.digest, layer.size, file)
        config_digest = _digest(image.config)
        if client.head(f"blobs/{config_digest}").status_code != 200:
            _upload(client, config_digest, len(image.config), image.config)
        _check(client.put(f"manifests/{tag}", content=image.manifest, headers={"Content-Type": MANIFEST}), f"{image.name}:{tag}")
    return True


def _upload(client: httpx.Client, digest: str, size: int, content: bytes | io.BufferedReader) -> None:
    started = _check(client.post("blobs/uploads/"), digest)
    location = httpx.URL(started.headers["location"]).copy_merge_params({"digest": digest})
    headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
    _check(client.put(location, content=content, headers=headers), digest)


def _check(response: httpx.Response, what: str) -> httpx.Response:
    if response.status_code >= 300:
        raise RegistryError(f"registry: got {response.status_code} for {what}: {response.text[:300]}; see devcluster logs registry")
    return response
