"""One node: its mount namespace, container runtime, kubelet, kube-proxy and the policy firewall."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import yaml

from devcluster import crio, footprint
from devcluster.layout import CLUSTER_DOMAIN, POD_CIDR, REGISTRY, SERVICE_DNS, ClusterError, Node, Runtime, write
from devcluster.processes import Process

PAUSE_IMAGE = "registry.k8s.io/pause"
_PRIVATE = {"kubelet": "/var/lib/kubelet", "cni": "/var/lib/cni", "pod-logs": "/var/log/pods"}
"""Node directory to the path that runtime and kubelet hard-code; each node sees its own there."""
_OF_A_RUNTIME: Mapping[Runtime, Mapping[str, str]] = {
    "containerd": {"run-containerd": "/run/containerd"},
    "crio": {"run-crio": "/run/crio", "crio-cache": "/var/lib/containers"},
}
"""The same, with one container runtime."""
_TUNABLES = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
"""What the kubelet wants of the whole machine (pkg/kubelet/cm/container_manager_linux.go, 1.36). It finds these values in files of its own:
a laptop that restarts ten seconds after an oops is nothing that a development cluster may leave behind."""

# `ip netns exec` would hide the cgroup mounts under a new /sys, so they are moved aside and back.
_MOUNT_SETUP = """
set -eu
aside=$1; shift
mkdir -p "$aside"
mount --rbind /sys/fs/cgroup "$aside"
umount -l /sys
mount -t sysfs sysfs /sys
mount --rbind "$aside" /sys/fs/cgroup
umount -l "$aside"
while [ $# -gt 0 ]; do
  mount --bind "$1" "$2"
  [ "$(stat -c %d:%i "$1")" = "$(stat -c %d:%i "$2")" ] || { echo "$2 is not the node's own" >&2; exit 1; }
  shift 2
done
mount --make-rshared /
"""


def ensure_mount_namespace(node: Node) -> bool:
    """Make the node's persistent mount namespace. Returns whether it was made now. Raises ClusterError.

    It counts as made once its mark is written, which is last: processes in half of one would use the machine's own directories.
    """
    directory = node.cluster.namespaces_dir
    directory.mkdir(parents=True, exist_ok=True)
    private = {**_PRIVATE, **_OF_A_RUNTIME[node.cluster.runtime]}
    for name, target in private.items():
        (node.directory / name).mkdir(parents=True, exist_ok=True)
        footprint.make_directory(Path(target))
    binds = {str(node.directory / name): target for name, target in private.items()}
    binds |= {str(_tunable(node, name, value)): f"/proc/sys/{name}" for name, value in _TUNABLES.items()}
    mark = node.directory / "mounts-made"
    if is_mounted(node.mount_namespace):
        if mark.exists() and _holds(node, binds):
            return False
        subprocess.run(["umount", str(node.mount_namespace)], check=True)
    mark.unlink(missing_ok=True)
    if not is_mounted(directory):
        # A mount namespace can be kept only on a private mount.
        subprocess.run(["mount", "--bind", str(directory), str(directory)], check=True)
        subprocess.run(["mount", "--make-private", str(directory)], check=True)
    node.mount_namespace.touch()
    # Slave: what the user unmounts goes here too, and nothing that is mounted here comes out.
    kept = ["unshare", f"--mount={node.mount_namespace}", "--propagation=slave"]
    setup = ["sh", "-c", _MOUNT_SETUP, "sh", str(node.directory / "cgroups"), *(part for pair in binds.items() for part in pair)]
    said = _on_some_cpu(["nsenter", f"--net=/run/netns/{node.netns}", *kept, *setup])
    if said:
        subprocess.run(["umount", str(node.mount_namespace)], capture_output=True)
        raise ClusterError(f"{node.name}: got {said!r} from mount, want a mount namespace; run as root with CAP_SYS_ADMIN")
    mark.touch()
    return True


def _on_some_cpu(argv: list[str]) -> str:
    """Why the command failed, and nothing if it did not.

    Linux 6.18 numbers namespaces in blocks of each CPU, and lets a mount namespace be kept in a file only where its number is higher than
    the own one: in a container that depends on the CPU (`Invalid argument`; tried 2026-11-26).
    """
    said = ""
    for cpu in sorted(os.sched_getaffinity(0)):
        done = subprocess.run(["taskset", "--cpu-list", str(cpu), *argv], capture_output=True, text=True)
        if done.returncode == 0:
            return ""
        said = done.stderr.strip() or f"exit status {done.returncode}"
        if "Invalid argument" not in said:
            break
    return said


def _holds(node: Node, binds: Mapping[str, str]) -> bool:
    """Whether the namespace has the node's own files at all of these places."""
    inside = ["nsenter", f"--mount={node.mount_namespace}", "stat", "-c", "%d:%i", *binds.values()]
    found = subprocess.run(inside, capture_output=True, text=True).stdout.split()
    return found == [f"{stat.st_dev}:{stat.st_ino}" for stat in map(os.stat, binds)]


def _tunable(node: Node, name: str, value: str) -> Path:
    path = node.directory / "tunables" / name.replace("/", ".")
    write(path, value + "\n")
    return path


def _mount_points() -> list[str]:
    """Of this namespace, in order. The kernel writes a space, and a few more characters, as three octal digits (proc_pid_mounts(5))."""
    targets = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [re.sub(r"\\([0-7]{3})", lambda digits: chr(int(digits[1], 8)), target) for target in targets]


def is_mounted(path: Path) -> bool:
    """os.path.ismount cannot see a bind mount within one file system."""
    return str(path) in _mount_points()


def remove_mounts(directory: Path) -> None:
    """Unmount everything below the directory, in this namespace."""
    for target in reversed([each for each in _mount_points() if Path(each).is_relative_to(directory)]):
        subprocess.run(["umount", target], check=True)


def write_config(node: Node, binaries: Path, pause: str) -> None:
    """Write what the node's processes read. `pause`: the sandbox image, by digest."""
    config = node.directory / "config"
    if node.cluster.runtime == "crio":
        crio.write_config(node, binaries, pause)
    else:
        write(config / "containerd.toml", _containerd_toml(node, config, pause))
        write(config / "certs.d" / "_default" / "hosts.toml", _HOSTS_TOML)
    write(config / "cni" / "10-modelfleet.conflist", json.dumps(_cni(node), indent=1))
    write(config / "kubelet.yaml", yaml.safe_dump(_kubelet(node)))
    write(config / "kube-proxy.yaml", yaml.safe_dump(_kube_proxy(node)))
    write(config / "resolv.conf", "options ndots:5\n")


def _containerd_toml(node: Node, config: Path, pause: str) -> str:
    # Where the machine's root may not lower an OOM score (no CAP_SYS_RESOURCE), no pod starts without restrict_oom_score_adj.
    return f"""\
version = 3
root = "{node.directory / "containerd"}"
state = "/run/containerd"
disabled_plugins = ["io.containerd.nri.v1.nri"]

[grpc]
  address = "/run/containerd/containerd.sock"

[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  max_concurrent_downloads = 4
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{pause}"
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = "{config / "certs.d"}"

[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  disable_apparmor = true
  netns_mounts_under_state_dir = true
  enable_cdi = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/usr/lib/cni"]
    conf_dir = "{config / "cni"}"
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
        SystemdCgroup = false
        BinaryName = "{shutil.which("runc") or "/usr/sbin/runc"}"
"""


_HOSTS_TOML = f'server = "http://{REGISTRY}"\n[host."http://{REGISTRY}"]\n  capabilities = ["pull", "resolve"]\n'
"""Every image name is looked up in the cluster's own registry, and nowhere else."""


def _cni(node: Node) -> dict[str, object]:
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": node.pod_subnet, "gateway": node.pod_gateway}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": "/var/lib/cni/networks",
        },
    }
    return {"cniVersion": "1.0.0", "name": "modelfleet", "plugins": [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}]}


def _kubelet(node: Node) -> dict[str, object]:
    pki = node.cluster.pki_dir
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": node.address,
        "authentication": {"anonymous": {"enabled": False}, "webhook": {"enabled": True}, "x509": {"clientCAFile": str(pki / "ca.crt")}},
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(pki / f"kubelet-{node.name}-serving.crt"),
        "tlsPrivateKeyFile": str(pki / f"kubelet-{node.name}-serving.key"),
        "containerRuntimeEndpoint": f"unix://{_socket(node)}",
        "clusterDNS": [SERVICE_DNS],
        "clusterDomain": CLUSTER_DOMAIN,
        "resolvConf": str(node.directory / "config" / "resolv.conf"),
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{node.cgroup}",
        "oomScoreAdj": 0,
        "maxOpenFiles": 20000,
        "failSwapOn": False,
        "protectKernelDefaults": True,
        "maxPods": 60,
        # The disk is the user's: unused images go before it is full, and pods before the user's own programs find it full.
        "imageGCHighThresholdPercent": 95,
        "imageGCLowThresholdPercent": 90,
        "evictionHard": {"memory.available": "200Mi", "nodefs.available": "1Gi", "imagefs.available": "1Gi"},
        "nodeStatusUpdateFrequency": "10s",
        "serializeImagePulls": False,
        "shutdownGracePeriod": "0s",
        "healthzBindAddress": "127.0.0.1",
        "volumePluginDir": "/var/lib/kubelet/volumeplugins",
    }


def _kube_proxy(node: Node) -> dict[str, object]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": str(node.cluster.config_dir / "kube-proxy.kubeconfig")},
        "clusterCIDR": POD_CIDR,
        "hostnameOverride": node.name,
        "bindAddress": node.address,
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        # The connection-tracking limit cannot be set from a network namespace.
        "conntrack": {"maxPerCore": 0, "min": 0},
        "nodePortAddresses": [f"{node.address}/32"],
    }


def _socket(node: Node) -> str:
    return crio.SOCKET if node.cluster.runtime == "crio" else "/run/containerd/containerd.sock"


def runtime_name(node: Node) -> str:
    """The process that is the node's container runtime."""
    return f"{node.cluster.runtime}-{node.name}"


def runtime_socket(node: Node) -> Path:
    """The container runtime's socket as the machine sees it."""
    return node.directory / f"run-{node.cluster.runtime}" / Path(_socket(node)).name


def processes(node: Node, binaries: Path) -> list[Process]:
    """The container runtime first: the others need it."""
    config = node.directory / "config"
    kubeconfigs = node.cluster.config_dir
    # containerd finds its shim on PATH, CRI-O conmon. iptables would leave its lock in the machine's /run.
    path = {
        "PATH": f"{binaries}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "XTABLES_LOCKFILE": str(node.directory / "xtables.lock"),
    }
    kubelet = [
        str(binaries / "kubelet"),
        f"--config={config / 'kubelet.yaml'}",
        f"--kubeconfig={kubeconfigs / f'kubelet-{node.name}.kubeconfig'}",
        f"--hostname-override={node.name}",
        f"--node-ip={node.address}",
    ]
    router = [
        str(binaries / "kube-router"),
        f"--kubeconfig={kubeconfigs / 'kube-router.kubeconfig'}",
        f"--hostname-override={node.name}",
        "--run-firewall=true",
        "--run-router=false",
        "--run-service-proxy=false",
        # It gives up when its roles come later than this; on a busy machine they do.
        "--cache-sync-timeout=5m",
        "--health-addr=127.0.0.1",
        "--metrics-port=0",
    ]
    containerd = [str(binaries / "containerd"), "--config", str(config / "containerd.toml")]
    return [
        crio.process(node, binaries, path)
        if node.cluster.runtime == "crio"
        else Process(name=runtime_name(node), argv=containerd, files=(config / "containerd.toml",), node=node, mounts=True, env=path),
        Process(name=f"kubelet-{node.name}", argv=kubelet, files=(config / "kubelet.yaml",), node=node, mounts=True, env=path),
        Process(
            name=f"kube-proxy-{node.name}",
            argv=[str(binaries / "kube-proxy"), f"--config={config / 'kube-proxy.yaml'}"],
            files=(config / "kube-proxy.yaml",),
            node=node,
            mounts=True,
            env=path,
        ),
        Process(name=f"kube-router-{node.name}", argv=router, node=node, mounts=True, env=path),
    ]
