"""The oldest supported Kubernetes takes every object of both stacks and of every platform's file. 10 minutes, most of them to compile it.

Its API server alone runs here, with etcd: it defaults, validates and admits, as in a server-side dry run of a whole deployment.
"""

import csv
import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from devcluster import toolchain
from infra.program.cluster import OLDEST
from tests.component.test_platforms import objects
from tests.contract.test_laws import documents
from tests.overlay import PLATFORMS
from tests.proofs.modules import Module, compiled
from tests.proofs.records import Proof
from tests.proofs.unwrapped import plain
from tests.service.processes import free_port

PROOF = Proof(
    "oldest", guards=("infra/program", "components", "examples/platforms", "Pulumi.dev.yaml", "Pulumi.prod.yaml", "tests/proofs/oldest")
)
TOKEN = "of-this-test-alone"


KUBERNETES = Module(
    name="oldest",
    packages={"kube-apiserver-oldest": "k8s.io/kubernetes/cmd/kube-apiserver"},
    cpu_minutes=7,
    version_of="k8s.io/kubernetes",
    variables=toolchain.BY_NAME["kubernetes"].variables,
    on_demand=True,
)


@pytest.fixture(scope="module")
def kubectl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The command line of kubectl at a new API server of that version."""
    tools = compiled(KUBERNETES, "etcd", "kubectl")
    work, etcd_port, peer_port, port = tmp_path_factory.mktemp("oldest"), free_port(), free_port(), free_port()
    key = rsa.generate_private_key(65537, 2048)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (work / "sa.key").write_bytes(key.private_bytes(*form))
    with (work / "tokens.csv").open("w") as file:
        csv.writer(file).writerow([TOKEN, "admin", "admin", "system:masters"])
    etcd_url = f"http://127.0.0.1:{etcd_port}"
    etcd = [tools / "etcd", "--data-dir", work / "etcd", "--listen-client-urls", etcd_url, "--advertise-client-urls", etcd_url]
    etcd += ["--listen-peer-urls", f"http://127.0.0.1:{peer_port}", "--log-level", "error"]
    api_server = [
        tools / "kube-apiserver-oldest",
        *("--etcd-servers", etcd_url, "--bind-address", "127.0.0.1", "--advertise-address", "127.0.0.1", "--secure-port", str(port)),
        *(
            "--cert-dir",
            work,
            "--token-auth-file",
            work / "tokens.csv",
            "--authorization-mode",
            "RBAC",
            "--endpoint-reconciler-type",
            "none",
        ),
        *("--service-account-issuer", "https://kubernetes.default.svc", "--service-account-key-file", work / "sa.key"),
        *("--service-account-signing-key-file", work / "sa.key", "--service-cluster-ip-range", "10.96.0.0/16"),
        # Accounts are made by a controller, which does not run.
        *("--disable-admission-plugins", "ServiceAccount", "--allow-privileged=true"),
    ]
    argv = [
        str(tools / "kubectl"),
        "--server",
        f"https://127.0.0.1:{port}",
        "--insecure-skip-tls-verify",
        "--token",
        TOKEN,
        "--kubeconfig",
        "/dev/null",
    ]
    with (
        (work / "log").open("wb") as log,
        subprocess.Popen(etcd, stdout=log, stderr=log) as first,
        subprocess.Popen(api_server, stdout=log, stderr=log) as second,
    ):
        try:
            deadline = time.monotonic() + 120
            while subprocess.run([*argv, "get", "--raw", "/readyz"], capture_output=True).returncode:
                assert second.poll() is None and time.monotonic() < deadline, (work / "log").read_text()[-3000:]
                time.sleep(0.5)
            yield argv
        finally:
            second.terminate()
            second.wait(30)
            first.terminate()


def operators_kinds(kubectl: list[str], found: list[dict[str, Any]]) -> None:
    """Have the API server know the kinds of operators that a platform has; what is in them is not checked."""
    for group, version, kind in {(*item["apiVersion"].rpartition("/")[::2], item["kind"]) for item in found}:
        if "." not in group or group.endswith(".k8s.io"):
            continue
        plural = f"{kind.lower()}s"
        schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
        versions = [{"name": version, "served": True, "storage": True, "schema": schema}]
        spec = {"group": group, "scope": "Namespaced", "names": {"plural": plural, "kind": kind}, "versions": versions}
        given = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": f"{plural}.{group}"}}
        run(kubectl, "apply", "--server-side", "-f", "-", given=json.dumps(given | {"spec": spec}))
        run(kubectl, "wait", "--for=condition=Established", f"crd/{plural}.{group}", "--timeout=30s")


def run(kubectl: list[str], *arguments: str, given: str = "") -> str:
    done = subprocess.run([*kubectl, *arguments], input=given, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_the_oldest_that_the_program_accepts(kubectl: list[str]) -> None:
    version = json.loads(run(kubectl, "get", "--raw", "/version"))
    assert (int(version["major"]), int(version["minor"])) == OLDEST


@pytest.mark.parametrize("name", ["dev", "prod", *PLATFORMS])
def test_every_object_is_taken(kubectl: list[str], name: str, figures: dict[str, Any]) -> None:
    found = plain(objects(name) if name in PLATFORMS else documents(name))
    # What others lie in must be there.
    spaces = {item["metadata"].get("namespace") for item in found} | {
        item["metadata"]["name"] for item in found if item["kind"] == "Namespace"
    }
    for space in sorted(filter(None, spaces)):
        given = json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": space}})
        run(kubectl, "apply", "--server-side", "--force-conflicts", "-f", "-", given=given)
    operators_kinds(kubectl, found)
    whole = json.dumps({"apiVersion": "v1", "kind": "List", "items": found})
    said = run(kubectl, "apply", "--server-side", "--dry-run=server", "-f", "-", given=whole)
    assert len(said.splitlines()) == len(found)
    figures.setdefault("objects taken", {})[name] = len(found)
