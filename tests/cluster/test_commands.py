"""The commands of devcluster and make, as a user types them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from devcluster import cluster as embedded
from devcluster import controlplane, layout, network
from devcluster.oci import EPOCH, MANIFEST
from infra.engine.errors import CommandError
from infra.lifecycle import own_cluster, removal
from infra.lifecycle.bring_up import chat
from tests.cluster.conftest import MODEL, NAME, SCRIPT, Stack
from tests.cluster.kube import eventually

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parents[2]


def devcluster(*arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "devcluster", "--name", NAME, *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | env, capture_output=True, text=True, timeout=120)


def test_status_names_every_component_and_says_ready(stack: Stack) -> None:
    done = devcluster("status")
    assert done.returncode == 0, done.stdout
    for name in ("etcd", "kube-apiserver", "kubelet-n1", "kubelet-n2", "kube-router-n2", "registry"):
        assert f"{name} " in done.stdout
    assert done.stdout.strip().endswith("ready")


def test_kubeconfig_and_logs_are_printed(stack: Stack) -> None:
    assert Path(devcluster("kubeconfig").stdout.strip()).read_text().startswith("apiVersion: v1")
    assert "kubelet-n1" in devcluster("logs").stdout
    assert devcluster("logs", "kubelet-n1", "--lines", "3").stdout.strip()
    wrong = devcluster("logs", "nonsense")
    assert wrong.returncode == 1
    assert "error: component: got 'nonsense', want one of" in wrong.stderr


def test_a_loaded_image_runs_under_its_name(stack: Stack, tmp_path: Path) -> None:
    """An archive as `docker save` writes it: one layer with one static binary."""
    binary = tmp_path / "hello"
    source = tmp_path / "hello.c"
    source.write_text('#include <unistd.h>\nint main(void) { write(1, "loaded\\n", 7); return 0; }\n')
    subprocess.run(["gcc", "-static", "-o", str(binary), str(source)], check=True)
    subprocess.run(["tar", "--mtime", f"@{EPOCH}", "-C", str(tmp_path), "-cf", str(tmp_path / "layer.tar"), "hello"], check=True)
    digest = subprocess.run(["sha256sum", str(tmp_path / "layer.tar")], capture_output=True, text=True, check=True).stdout.split()[0]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["/hello"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "manifest.json").write_text(json.dumps([{"Config": "config.json", "RepoTags": ["x/hello:1"], "Layers": ["layer.tar"]}]))
    subprocess.run(
        ["tar", "-C", str(tmp_path), "-cf", str(tmp_path / "image.tar"), "manifest.json", "config.json", "layer.tar"], check=True
    )
    done = devcluster("load", f"docker-archive:{tmp_path / 'image.tar'}", "--as", "example/hello:1")
    assert done.returncode == 0, done.stderr
    stack.kube.run("run", "hello", "--image=example/hello:1", "--restart=Never", "-n", "default")
    eventually(
        lambda: stack.kube.run("logs", "hello", "-n", "default", check=False), lambda text: text == "loaded\n", 60, "the loaded image ran"
    )
    stack.kube.run("delete", "pod", "hello", "-n", "default", "--wait=false")


def test_an_archive_needs_a_name(stack: Stack) -> None:
    done = devcluster("load", "docker-archive:nothing.tar")
    assert (done.returncode, "error: --as: got nothing, want the name" in done.stderr) == (1, True)


def test_another_number_of_nodes_is_refused(stack: Stack) -> None:
    done = devcluster("up", "--nodes", "3")
    assert done.returncode == 1
    assert "error: --nodes: got 3, want 2 as the running cluster" in done.stderr


def test_a_cluster_of_three_nodes_comes_up_beside_this_one() -> None:
    """Those of one node do in other files of this tier."""
    name = f"{NAME}-3"
    try:
        cluster = embedded.up(name, 3)
        assert embedded.not_ready(cluster) == []
        with controlplane.client(cluster) as api:
            found = sorted(item["metadata"]["name"] for item in api.get("/api/v1/nodes").json()["items"])
        assert found == ["n1", "n2", "n3"]
    finally:
        left = layout.load(name)
        if left is not None:
            embedded.down(left)


def test_the_registry_is_for_nodes_alone_and_deletes_nothing(stack: Stack) -> None:
    """The machine itself, and so its users and its neighbours, has no way to it."""
    address = layout.REGISTRY.partition(":")[0]
    route = subprocess.run(["ip", "route", "get", address], capture_output=True, text=True).stdout
    assert stack.cluster.host_link not in route
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://{stack.cluster.host_address}:5000/v2/", timeout=3, trust_env=False)
    with network.inside(stack.cluster.nodes[1].netns):
        base = f"http://{layout.REGISTRY}/v2/modelfleet/base"
        found = httpx.head(f"{base}/manifests/embedded", headers={"Accept": MANIFEST}, trust_env=False).raise_for_status()
        refused = httpx.delete(f"{base}/manifests/{found.headers['docker-content-digest']}", trust_env=False)
        assert refused.status_code == 405


def test_a_registry_that_does_not_answer_is_one_clear_error() -> None:
    cluster = layout.create(f"{NAME}-port", 1)
    try:
        network.ensure(cluster)
        with network.inside(cluster.fabric_netns):
            taken = socket.create_server((layout.REGISTRY.partition(":")[0], 5000))
        with taken:
            done = subprocess.run(
                [sys.executable, "-m", "devcluster", "--name", cluster.name, "up"], cwd=ROOT, capture_output=True, text=True, timeout=120
            )
        assert done.returncode == 1
        assert f"error: registry: got no answer at {layout.REGISTRY} from node n1, want one; run up again" in done.stderr
    finally:
        embedded.down(cluster)


def test_a_user_without_root_is_told_what_to_do() -> None:
    program = "import os; from devcluster import host; os.setuid(65534); host.check()"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert "user: got no root, want root for namespaces; run with sudo, or use your own cluster: make up CONTEXT=name" in done.stderr


def test_an_unknown_context_is_one_clear_error(tmp_path: Path) -> None:
    environment = os.environ | {"XDG_STATE_HOME": str(tmp_path), "KUBECONFIG": str(tmp_path / "none")}
    command = [sys.executable, "-m", "infra.lifecycle", "up", "--context", "nowhere"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "error: modelfleet:cluster.context: got 'nowhere', want a context of the kubeconfig (it has none at all)" in done.stderr
    assert "Traceback" not in done.stderr


def test_down_on_a_context_shows_what_goes_and_does_nothing_without_a_yes(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CommandError, match="down: got no confirmation, want the context's name typed; run it in a terminal, or add YES=1"):
        removal.down(stack.deployment, agreed=False)
    shown = capsys.readouterr().err
    assert f"objects of stack dev go from {stack.deployment.context}, namespace {stack.outputs.namespace}:" in shown
    assert "StatefulSet/ollama" in shown
    assert stack.kube.get("statefulset", "ollama", "-n", stack.outputs.namespace)["spec"]["replicas"] == 1


def test_a_cluster_of_ones_own_is_reached_through_a_forwarded_port(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{stack.kube.kubectl.parent}:{os.environ['PATH']}")
    with own_cluster.port_forward(stack.deployment, stack.outputs) as url:
        assert chat(url, stack.key, MODEL, "Say it.") == SCRIPT
