"""One node: its mount namespace, containerd, kubelet, kube-proxy and the policy firewall."""

import json
import shutil
import subprocess
from pathlib import Path

import yaml

from devcluster.layout import CLUSTER_DOMAIN, POD_CIDR, SERVICE_DNS, Cluster, ClusterError, Node, write
from devcluster.processes import Process

PAUSE_IMAGE = "registry.k8s.io/pause:3.10"
_PRIVATE = {"kubelet": "/var/lib/kubelet", "run-containerd": "/run/containerd", "cni": "/var/lib/cni", "pod-logs": "/var/log/pods"}
"""Node directory to the path that runtime and kubelet hard-code; each node sees its own there."""

# `ip netns exec` would hide the cgroup mounts under a new /sys, so they are moved aside and back.
_MOUNT_SETUP = """
set -eu
mount --make-rprivate /
aside=$1; shift
mkdir -p "$aside"
mount --rbind /sys/fs/cgroup "$aside"
umount -l /sys
mount -t sysfs sysfs /sys
mount --rbind "$aside" /sys/fs/cgroup
umount -l "$aside"
while [ $# -gt 0 ]; do mount --bind "$1" "$2"; shift 2; done
mount --make-rshared /
"""


def ensure_mount_namespace(node: Node) -> bool:
    """Make the node's persistent mount namespace. Returns whether it was made now."""
    directory = node.cluster.namespaces_dir
    directory.mkdir(parents=True, exist_ok=True)
    for name, target in _PRIVATE.items():
        (node.directory / name).mkdir(parents=True, exist_ok=True)
        _ensure_mount_point(node.cluster, Path(target))
    if _is_mounted(node.mount_namespace):
        return False
    if not _is_mounted(directory):
        # A mount namespace can be kept only on a private mount.
        subprocess.run(["mount", "--bind", str(directory), str(directory)], check=True)
        subprocess.run(["mount", "--make-private", str(directory)], check=True)
    node.mount_namespace.touch()
    binds = [part for name, target in _PRIVATE.items() for part in (str(node.directory / name), target)]
    done = subprocess.run(
        ["nsenter", f"--net=/run/netns/{node.netns}", "unshare", f"--mount={node.mount_namespace}",
         "sh", "-c", _MOUNT_SETUP, "sh", str(node.directory / "cgroups"), *binds],
        capture_output=True,
        text=True,
    )  # fmt: skip
    if done.returncode:
        raise ClusterError(f"{node.name}: got {done.stderr.strip()!r} from mount, want a mount namespace; run as root with CAP_SYS_ADMIN")
    return True


def _is_mounted(path: Path) -> bool:
    """os.path.ismount cannot see a bind mount within one file system."""
    return any(line.split()[1] == str(path) for line in Path("/proc/self/mounts").read_text().splitlines())


def _ensure_mount_point(cluster: Cluster, path: Path) -> None:
    """Make a mount point on the machine and remember that it is ours to remove."""
    if path.exists():
        return
    path.mkdir(parents=True)
    with (cluster.state_dir / "mount-points").open("a") as file:
        file.write(f"{path}\n")


def mounted_elsewhere(path: Path) -> bool:
    """Whether another mount namespace has a mount there, such as a node of another cluster: removing the directory would detach it."""
    own = Path("/proc/self/ns/mnt").stat().st_ino
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "ns" / "mnt").stat().st_ino != own and f" {path} " in (process / "mounts").read_text():
                return True
        except OSError:
            continue
    return False


def remove_mounts(cluster: Cluster) -> None:
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for target in reversed([mount for mount in mounts if Path(mount).is_relative_to(cluster.namespaces_dir)]):
        subprocess.run(["umount", target], check=True)
    made = cluster.state_dir / "mount-points"
    for line in made.read_text().splitlines() if made.exists() else []:
        if mounted_elsewhere(Path(line)):
            continue
        try:
            Path(line).rmdir()
        except OSError:
            continue


def write_config(node: Node) -> None:
    config = node.directory / "config"
    write(config / "containerd.toml", _containerd_toml(node, config))
    write(config / "certs.d" / "_default" / "hosts.toml", _hosts_toml(node))
    write(config / "cni" / "10-modelfleet.conflist", json.dumps(_cni(node), indent=1))
    write(config / "kubelet.yaml", yaml.safe_dump(_kubelet(node)))
    write(config / "kube-proxy.yaml", yaml.safe_dump(_kube_proxy(node)))
    write(config / "resolv.conf", "options ndots:5\n")


def _containerd_toml(node: Node, config: Path) -> str:
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
    sandbox = "{PAUSE_IMAGE}"
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


def _hosts_toml(node: Node) -> str:
    """Every image name is looked up in the cluster's own registry, and nowhere else."""
    registry = f"http://{node.cluster.registry}"
    return f'server = "{registry}"\n[host."{registry}"]\n  capabilities = ["pull", "resolve"]\n'


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
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "clusterDNS": [SERVICE_DNS],
        "clusterDomain": CLUSTER_DOMAIN,
        "resolvConf": str(node.directory / "config" / "resolv.conf"),
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{node.cgroup}",
        "oomScoreAdj": 0,
        "maxOpenFiles": 20000,
        "failSwapOn": False,
        "maxPods": 60,
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "200Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
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


def runtime_socket(node: Node) -> Path:
    """containerd's socket as the machine sees it."""
    return node.directory / "run-containerd" / "containerd.sock"


def processes(node: Node, binaries: Path) -> list[Process]:
    """The container runtime first: the others need it."""
    config = node.directory / "config"
    kubeconfigs = node.cluster.config_dir
    # containerd finds its shim on PATH.
    path = {"PATH": f"{binaries}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
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
    return [
        Process(
            name=f"containerd-{node.name}",
            argv=[str(binaries / "containerd"), "--config", str(config / "containerd.toml")],
            node=node,
            mounts=True,
            env=path,
        ),
        Process(name=f"kubelet-{node.name}", argv=kubelet, node=node, mounts=True, env=path),
        Process(
            name=f"kube-proxy-{node.name}",
            argv=[str(binaries / "kube-proxy"), f"--config={config / 'kube-proxy.yaml'}"],
            node=node,
            mounts=True,
            env=path,
        ),
        Process(name=f"kube-router-{node.name}", argv=router, node=node, mounts=True, env=path),
    ]
