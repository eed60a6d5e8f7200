"""CRI-O as a node's container runtime, in place of containerd: its files, and its process."""

import json
import shutil
from pathlib import Path

from devcluster import cgroups
from devcluster.layout import REGISTRY, Node, write
from devcluster.processes import Process

SOCKET = "/var/run/crio/crio.sock"
"""The kubelet and cAdvisor know CRI-O by this very path."""
HANDLER = "runc"
_HOSTS = ("com", "dev", "example", "internal", "io", "local", "net", "org", "test")
"""Ends of the host names that are looked up in the cluster's own registry. containers-registries.conf(5) has no pattern for all."""
# Where the machine's root may not lower an OOM score, runc ends; containerd has a switch for that (restrict_oom_score_adj).
_EDITS = (r's/"oomScoreAdj": *-[0-9]*/"oomScoreAdj":0/',)
# CRI-O asks the kernel whether huge pages can be limited, and not whether their hierarchy is mounted.
_WITHOUT_HUGE_PAGES = r's/"hugepageLimits": *\[[^]]*\]/"hugepageLimits":[]/'
_RUNTIME = """\
#!/bin/sh
set -eu
before=
for word in "$@"; do
  [ "$before" != --bundle ] || sed -z -i '{edits}' "$word/config.json"
  before=$word
done
exec {runc} "$@"
"""


def runtime_path(node: Node) -> Path:
    """The low-level runtime of the node: runc, and no container with a lowered OOM score. Debian 12's crun refuses CRI-O's containers."""
    return node.directory / "config" / "runc"


def drop_ins(node: Node) -> Path:
    """What stands on other machines in /etc/crio/crio.conf.d."""
    return node.directory / "config" / "crio.conf.d"


def write_config(node: Node, binaries: Path, pause: str) -> None:
    """Write what CRI-O reads. `pause`: the sandbox image, by digest."""
    config = node.directory / "config"
    edits = _EDITS if cgroups.unified() or (cgroups.ROOT / "hugetlb").exists() else (*_EDITS, _WITHOUT_HUGE_PAGES)
    write(runtime_path(node), _RUNTIME.format(edits="; ".join(edits), runc=shutil.which("runc") or "/usr/sbin/runc"))
    runtime_path(node).chmod(0o755)
    write(config / "crio.conf", _crio_conf(node, binaries, pause))
    write(config / "registries.conf", _registries_conf())
    write(config / "policy.json", json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
    # What the machine's own tools of that family are told is not read.
    write(
        config / "storage.conf", f'[storage]\ndriver = "overlay"\nrunroot = "/run/crio/storage"\ngraphroot = "{node.directory / "crio"}"\n'
    )
    for directory in ("crio.conf.d", "registries.conf.d", "crio-hooks", "crio-policies"):
        (config / directory).mkdir(exist_ok=True)


def _crio_conf(node: Node, binaries: Path, pause: str) -> str:
    config = node.directory / "config"
    return f"""\
[crio]
root = "{node.directory / "crio"}"
runroot = "/run/crio/storage"
storage_driver = "overlay"
log_dir = "/run/crio/logs"
version_file = "/run/crio/version"
version_file_persist = "{node.directory / "crio-version"}"
clean_shutdown_file = "{node.directory / "crio-clean-shutdown"}"

[crio.api]
listen = "{SOCKET}"

[crio.runtime]
cgroup_manager = "cgroupfs"
apparmor_profile = "unconfined"
enable_criu_support = false
namespaces_dir = "/run/crio/namespaces"
container_exits_dir = "/run/crio/exits"
container_attach_socket_dir = "/run/crio/attach"
hooks_dir = ["{config / "crio-hooks"}"]
pinns_path = "{binaries / "pinns"}"
default_runtime = "{HANDLER}"

[crio.runtime.runtimes.{HANDLER}]
runtime_path = "{runtime_path(node)}"
runtime_type = "oci"
runtime_root = "/run/crio/{HANDLER}"

[crio.image]
pause_image = "{pause}"
signature_policy = "{config / "policy.json"}"
signature_policy_dir = "{config / "crio-policies"}"
namespaced_auth_dir = "/run/crio/auth"

[crio.network]
network_dir = "{config / "cni"}"
plugin_dirs = ["/usr/lib/cni"]

[crio.nri]
enable_nri = false
"""


def _registries_conf() -> str:
    hosts = "".join(f'[[registry]]\nprefix = "*.{end}"\nlocation = "{REGISTRY}"\ninsecure = true\n' for end in _HOSTS)
    return f'unqualified-search-registries = ["docker.io"]\n{hosts}'


def process(node: Node, binaries: Path, env: dict[str, str]) -> Process:
    """`env`: what every process of the node gets."""
    config = node.directory / "config"
    files = (config / "crio.conf", config / "registries.conf")
    argv = [str(binaries / "crio"), "--config", str(files[0]), "--config-dir", str(drop_ins(node))]
    argv += ["--registries-conf", str(files[1]), "--registries-conf-dir", str(config / "registries.conf.d")]
    return Process(
        name=f"crio-{node.name}",
        argv=argv,
        files=(*files, *sorted(drop_ins(node).glob("*"))),
        node=node,
        mounts=True,
        env={**env, "CONTAINERS_STORAGE_CONF": str(config / "storage.conf")},
    )
