"""What runs inside or beside the cluster to make it usable: DNS, the image registry, volume provisioning, roles."""

import json
import subprocess
import time
from pathlib import Path

import yaml

from devcluster import controlplane, packages
from devcluster.layout import CLUSTER_DOMAIN, REGISTRY, SERVICE_DNS, Cluster, ClusterError, write
from devcluster.processes import STORE, Process, running_pid, tail

COREDNS_IMAGE = "registry.k8s.io/coredns/coredns"
HELPER_IMAGE = "modelfleet/base"
_APPLY_S = 120.0
"""Longest time for all manifests; seconds on a machine with nothing else to do."""
_LAST = "kube-dns"
"""The Service of the last manifest."""
PROVISIONERS = {"hot": "modelfleet.dev/local", "shared": "modelfleet.dev/shared"}
"""Storage tier to provisioner name; a StorageClass names one of these."""

_COREFILE = f""".:53 {{
    errors
    health :8080
    ready :8181
    kubernetes {CLUSTER_DOMAIN} in-addr.arpa {{
        pods insecure
        ttl 5
    }}
    cache 5
    reload
}}
"""


def registry_process(cluster: Cluster) -> Process:
    config = {
        "version": 0.1,
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(cluster.state_dir / "registry")}},
        "http": {"addr": REGISTRY},
    }
    path = cluster.config_dir / "registry.yaml"
    write(path, yaml.safe_dump(config))
    return Process(
        name="registry",
        argv=[str(packages.registry_binary()), "serve", str(path)],
        files=(path,),
        netns=cluster.fabric_netns,
        env={"OTEL_TRACES_EXPORTER": "none"},
    )


def provisioner_processes(cluster: Cluster, binaries: Path, helper_image: str) -> list[Process]:
    """Rancher's local-path provisioner twice: node-local directories, and one directory that all nodes share."""
    nodes = [{"node": node.name, "paths": [str(node.directory / "hot")]} for node in cluster.nodes]
    tiers: dict[str, dict[str, object]] = {
        "hot": {"nodePathMap": nodes},
        "shared": {"nodePathMap": [], "sharedFileSystemPath": str(cluster.shared_dir)},
    }
    processes: list[Process] = []
    helper = cluster.config_dir / "provisioner-helper.yaml"
    write(helper, yaml.safe_dump(_helper_pod(helper_image)))
    for tier, config in tiers.items():
        path = cluster.config_dir / f"provisioner-{tier}.json"
        write(path, json.dumps(config))
        argv = [
            str(binaries / "local-path-provisioner"),
            "start",
            f"--config={path}",
            f"--provisioner-name={PROVISIONERS[tier]}",
            "--namespace=local-path-storage",
            "--configmap-name=local-path-scripts",
            f"--helper-image={helper_image}",
            "--service-account-name=default",
            f"--kubeconfig={cluster.config_dir / 'local-path.kubeconfig'}",
            f"--helper-pod-file={helper}",
        ]
        processes.append(Process(name=f"provisioner-{tier}", argv=argv, node=cluster.control_plane))
    return processes


def _helper_pod(image: str) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "helper-pod"},
        "spec": {
            "priorityClassName": "system-node-critical",
            "automountServiceAccountToken": False,
            "containers": [{"name": "helper-pod", "image": image, "imagePullPolicy": "IfNotPresent"}],
        },
    }


def _role(name: str, rules: list[dict[str, list[str]]], user: str) -> list[dict[str, object]]:
    return [
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules},
        _binding(name, name, {"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}),
    ]


def _binding(name: str, role: str, subject: dict[str, str]) -> dict[str, object]:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [subject],
    }


def _rule(groups: str, resources: str, verbs: str) -> dict[str, list[str]]:
    return {"apiGroups": groups.split(","), "resources": resources.split(), "verbs": verbs.split()}


def manifests(coredns_image: str) -> list[dict[str, object]]:
    read, manage = "get list watch", "get list watch create patch update delete"
    kubelet_user = {"kind": "User", "name": "modelfleet:apiserver-kubelet-client", "apiGroup": "rbac.authorization.k8s.io"}
    scripts = {
        "setup": '#!/bin/sh\nset -eu\nmkdir -m 0777 -p "$VOL_DIR"\n',
        "teardown": '#!/bin/sh\nset -eu\nrm -rf "$VOL_DIR"\n',
    }
    return [
        _binding("modelfleet:apiserver-kubelet-client", "system:kubelet-api-admin", kubelet_user),
        *_role(
            "modelfleet:kube-router",
            [
                _rule("", "namespaces pods services nodes endpoints", read),
                _rule("networking.k8s.io", "networkpolicies", read),
                _rule("discovery.k8s.io", "endpointslices", read),
                _rule("coordination.k8s.io", "leases", "get create update"),
            ],
            "modelfleet:kube-router",
        ),
        *_role(
            "modelfleet:local-path",
            [
                _rule("", "nodes persistentvolumeclaims configmaps pods/log", read),
                _rule("", "pods persistentvolumes endpoints", manage),
                _rule("", "events", "create patch"),
                _rule("coordination.k8s.io", "leases", manage),
                _rule("storage.k8s.io", "storageclasses", read),
            ],
            "modelfleet:local-path",
        ),
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "local-path-storage"}},
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "local-path-scripts", "namespace": "local-path-storage"},
            "data": scripts,
        },
        *_coredns(coredns_image),
    ]


def _coredns(image: str) -> list[dict[str, object]]:
    labels = {"k8s-app": "kube-dns"}
    metadata = {"name": "coredns", "namespace": "kube-system", "labels": labels}
    container = {
        "name": "coredns",
        "image": image,
        "args": ["-conf", "/etc/coredns/Corefile"],
        "ports": [{"name": "dns", "containerPort": 53, "protocol": "UDP"}, {"name": "dns-tcp", "containerPort": 53, "protocol": "TCP"}],
        "resources": {"requests": {"cpu": "50m", "memory": "48Mi"}, "limits": {"memory": "128Mi"}},
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 2},
        "livenessProbe": {"httpGet": {"path": "/health", "port": 8080}, "initialDelaySeconds": 20},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
        },
        "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns", "readOnly": True}],
    }
    pod = {
        "serviceAccountName": "coredns",
        "priorityClassName": "system-cluster-critical",
        "dnsPolicy": "Default",
        "containers": [container],
        "volumes": [{"name": "config", "configMap": {"name": "coredns"}}],
    }
    service_account = {"kind": "ServiceAccount", "name": "coredns", "namespace": "kube-system"}
    ports = [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "coredns", "namespace": "kube-system"}},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": "modelfleet:coredns"},
            "rules": [
                _rule("", "services pods namespaces", "list watch"),
                _rule("discovery.k8s.io", "endpointslices", "list watch"),
            ],
        },
        _binding("modelfleet:coredns", "modelfleet:coredns", service_account),
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"Corefile": _COREFILE}},
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata,
            "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {**metadata, "name": _LAST},
            "spec": {"clusterIP": SERVICE_DNS, "selector": labels, "ports": ports},
        },
    ]


def are_applied(cluster: Cluster) -> bool:
    """Whether all of the manifests are there: they are applied in their order, and this is the last one. Raises httpx.HTTPError."""
    with controlplane.client(cluster) as api:
        return api.get(f"/api/v1/namespaces/kube-system/services/{_LAST}").status_code == 200


def apply(cluster: Cluster, binaries: Path, documents: list[dict[str, object]]) -> None:
    """Raises ClusterError when an object is refused, and as soon as the store has ended, because kubectl would wait for it."""
    argv = [str(binaries / "kubectl"), f"--kubeconfig={cluster.kubeconfig}", "apply", "--server-side", "--force-conflicts", "-f", "-"]
    deadline, given = time.monotonic() + _APPLY_S, yaml.safe_dump_all(documents)
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while True:
            try:
                _, said = process.communicate(given, timeout=0.5)
                break
            except subprocess.TimeoutExpired:
                given = None
                if running_pid(cluster, STORE) is not None and time.monotonic() < deadline:
                    continue
                process.kill()
                raise ClusterError(f"kubectl apply: got no end, want one; the log of {STORE} ends:\n{tail(cluster, STORE)}") from None
    if process.returncode:
        raise ClusterError(f"kubectl apply: got {said.strip()[-1500:]!r}, want every object applied; see devcluster logs kube-apiserver")
