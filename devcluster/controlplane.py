"""etcd, API server, controller manager and scheduler, all in the first node's network namespace."""

import ssl
import time
from pathlib import Path

import httpx
import yaml

from devcluster.layout import API_PORT, CLUSTER_DOMAIN, POD_CIDR, SERVICE_CIDR, Cluster, ClusterError, write
from devcluster.processes import STORE, Process, restart, running_pid, tail

_ISSUER = f"https://kubernetes.default.svc.{CLUSTER_DOMAIN}"
_AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "None", "verbs": ["get", "list", "watch"]},
        {"level": "None", "resources": [{"group": "coordination.k8s.io", "resources": ["leases"]}, {"group": "", "resources": ["events"]}]},
        {"level": "Metadata"},
    ],
}


def write_config(cluster: Cluster) -> None:
    write(cluster.config_dir / "audit-policy.yaml", yaml.safe_dump(_AUDIT_POLICY))


_API_SERVER = "kube-apiserver"
_RESTARTS = 2


def processes(cluster: Cluster, binaries: Path) -> list[Process]:
    """In start order; each one retries until those before it answer."""
    node = cluster.control_plane
    return [
        Process(name=STORE, argv=_etcd(cluster, binaries), node=node),
        Process(name=_API_SERVER, argv=_apiserver(cluster, binaries), node=node),
        Process(name="kube-controller-manager", argv=_controller_manager(cluster, binaries), node=node),
        Process(
            name="kube-scheduler",
            argv=[
                str(binaries / "kube-scheduler"),
                f"--kubeconfig={cluster.config_dir / 'kube-scheduler.kubeconfig'}",
                "--bind-address=127.0.0.1",
                "--leader-elect=false",
            ],
            node=node,
        ),
    ]


def _etcd(cluster: Cluster, binaries: Path) -> list[str]:
    pki = cluster.pki_dir
    tls = [
        f"--{peer}{flag}={pki / file}"
        for peer in ("", "peer-")
        for flag, file in (("cert-file", "etcd.crt"), ("key-file", "etcd.key"), ("trusted-ca-file", "etcd-ca.crt"))
    ]
    return [
        str(binaries / "etcd"),
        f"--name={cluster.name}",
        f"--data-dir={cluster.state_dir / 'etcd'}",
        "--listen-client-urls=https://127.0.0.1:2379",
        "--advertise-client-urls=https://127.0.0.1:2379",
        "--listen-peer-urls=https://127.0.0.1:2380",
        "--initial-advertise-peer-urls=https://127.0.0.1:2380",
        f"--initial-cluster={cluster.name}=https://127.0.0.1:2380",
        "--client-cert-auth=true",
        "--peer-client-cert-auth=true",
        *tls,
        # A development cluster outlives its processes, not a power cut: no fsync makes it start in half the time.
        "--unsafe-no-fsync=true",
        "--log-level=warn",
        "--auto-compaction-retention=10m",
    ]


def _apiserver(cluster: Cluster, binaries: Path) -> list[str]:
    pki = cluster.pki_dir
    address = cluster.control_plane.address
    return [
        str(binaries / "kube-apiserver"),
        f"--bind-address={address}",
        f"--advertise-address={address}",
        f"--secure-port={API_PORT}",
        f"--service-cluster-ip-range={SERVICE_CIDR}",
        "--etcd-servers=https://127.0.0.1:2379",
        f"--etcd-cafile={pki / 'etcd-ca.crt'}",
        f"--etcd-certfile={pki / 'etcd-client.crt'}",
        f"--etcd-keyfile={pki / 'etcd-client.key'}",
        f"--encryption-provider-config={pki / 'encryption.json'}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        f"--client-ca-file={pki / 'ca.crt'}",
        f"--tls-cert-file={pki / 'apiserver.crt'}",
        f"--tls-private-key-file={pki / 'apiserver.key'}",
        f"--kubelet-certificate-authority={pki / 'ca.crt'}",
        f"--kubelet-client-certificate={pki / 'apiserver-kubelet-client.crt'}",
        f"--kubelet-client-key={pki / 'apiserver-kubelet-client.key'}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--service-account-issuer={_ISSUER}",
        f"--service-account-key-file={pki / 'sa.pub'}",
        f"--service-account-signing-key-file={pki / 'sa.key'}",
        f"--requestheader-client-ca-file={pki / 'front-proxy-ca.crt'}",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-username-headers=X-Remote-User",
        f"--proxy-client-cert-file={pki / 'front-proxy-client.crt'}",
        f"--proxy-client-key-file={pki / 'front-proxy-client.key'}",
        f"--audit-policy-file={cluster.config_dir / 'audit-policy.yaml'}",
        f"--audit-log-path={cluster.log_dir / 'audit.log'}",
        "--audit-log-maxsize=20",
        "--audit-log-maxbackup=2",
        "--allow-privileged=true",
        "--profiling=false",
    ]


def _controller_manager(cluster: Cluster, binaries: Path) -> list[str]:
    pki = cluster.pki_dir
    return [
        str(binaries / "kube-controller-manager"),
        f"--kubeconfig={cluster.config_dir / 'kube-controller-manager.kubeconfig'}",
        "--bind-address=127.0.0.1",
        "--leader-elect=false",
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={pki / 'sa.key'}",
        f"--root-ca-file={pki / 'ca.crt'}",
        f"--cluster-cidr={POD_CIDR}",
        "--allocate-node-cidrs=false",
        "--profiling=false",
    ]


def client(cluster: Cluster) -> httpx.Client:
    """An HTTP client of the API server with the administrator's certificate."""
    context = ssl.create_default_context(cafile=str(cluster.pki_dir / "ca.crt"))
    context.load_cert_chain(cluster.pki_dir / "admin.crt", cluster.pki_dir / "admin.key")
    return httpx.Client(base_url=cluster.api_url, verify=context, timeout=5.0, trust_env=False)


def wait_ready(cluster: Cluster, timeout_s: float = 90.0) -> None:
    """Return when the API server says ready. Raises ClusterError with the end of the right log otherwise.

    An API server that had lost its store may end after it was found running; then it is started again.
    """
    deadline, restarts = time.monotonic() + timeout_s, 0
    with client(cluster) as api:
        while True:
            try:
                answer = api.get("/readyz")
                if answer.status_code == 200:
                    return
                got = f"{answer.status_code} {answer.text[-200:].strip()!r}"
            except httpx.HTTPError as error:
                got = repr(error)
            dead = next((name for name in (STORE, _API_SERVER) if running_pid(cluster, name) is None), None)
            if dead == _API_SERVER and restarts < _RESTARTS:
                restarts += 1
                restart(cluster, _API_SERVER)
            elif dead or time.monotonic() > deadline:
                name = dead or _API_SERVER
                raise ClusterError(f"{name}: got {'an exit' if dead else got}, want ready; its log ends:\n{tail(cluster, name)}")
            time.sleep(0.1)
