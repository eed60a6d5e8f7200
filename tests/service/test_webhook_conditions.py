"""Which requests a real API server sends to the image webhook: no verifier answers here, so what is sent is refused."""

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from components.image_trust import BRINGS_IMAGES
from devcluster import toolchain
from tests.service.processes import free_port

PODS = "/api/v1/namespaces/ns/pods"
MERGE, STRATEGIC = "application/merge-patch+json", "application/strategic-merge-patch+json"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """etcd and kube-apiserver on loopback; nothing runs pods."""
    work, binaries = tmp_path_factory.mktemp("api"), toolchain.ensure(["kubernetes", "etcd"])
    subprocess.run(["openssl", "genrsa", "-out", str(work / "sa.key"), "2048"], check=True, capture_output=True)
    (work / "tokens").write_text("token,admin,1,system:masters\n")
    store, peers, port = (free_port() for _ in range(3))
    etcd = [
        str(binaries / "etcd"),
        f"--data-dir={work / 'etcd'}",
        f"--listen-client-urls=http://127.0.0.1:{store}",
        f"--advertise-client-urls=http://127.0.0.1:{store}",
        f"--listen-peer-urls=http://127.0.0.1:{peers}",
        "--unsafe-no-fsync",
    ]
    server = [
        str(binaries / "kube-apiserver"),
        f"--etcd-servers=http://127.0.0.1:{store}",
        "--service-cluster-ip-range=198.18.0.0/24",
        f"--service-account-key-file={work / 'sa.key'}",
        f"--service-account-signing-key-file={work / 'sa.key'}",
        "--service-account-issuer=https://issuer.example.com",
        "--authorization-mode=AlwaysAllow",
        f"--token-auth-file={work / 'tokens'}",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        f"--secure-port={port}",
        f"--cert-dir={work / 'certificates'}",
        "--disable-admission-plugins=ServiceAccount",
    ]
    with ExitStack() as stack:
        for name, argv in (("etcd", etcd), ("kube-apiserver", server)):
            log = stack.enter_context((work / f"{name}.log").open("wb"))
            process = stack.enter_context(subprocess.Popen(argv, stdout=log, stderr=log))
            stack.callback(process.terminate)
        options: dict[str, Any] = {"headers": {"Authorization": "Bearer token"}, "trust_env": False, "timeout": 30}
        # Its certificate is one that it has made for itself just now.
        client = stack.enter_context(httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=False, **options))  # noqa: S501
        ready(client, work / "kube-apiserver.log")
        client.post("/api/v1/namespaces", json={"metadata": {"name": "ns"}}).raise_for_status()
        yield client


def ready(client: httpx.Client, log: Path) -> None:
    deadline = time.monotonic() + 300
    while True:
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.5)


def pod(name: str) -> dict[str, Any]:
    spec = {"initContainers": [{"name": "i", "image": "i:1"}], "containers": [{"name": "c", "image": "c:1"}]}
    return {"metadata": {"name": name, "finalizers": ["example.com/held"]}, "spec": spec}


def patch(api: httpx.Client, path: str, kind: str, **change: Any) -> int:
    answer = api.patch(f"{PODS}/{path}", content=json.dumps(change), headers={"Content-Type": kind})
    print(path, answer.status_code, answer.json().get("message"))
    return answer.status_code


def test_i16_only_what_brings_an_image_waits_for_a_verifier(api: httpx.Client) -> None:
    api.post(PODS, json=pod("p")).raise_for_status()
    webhook = {
        "name": "image-verifier.modelfleet.dev",
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "failurePolicy": "Fail",
        "timeoutSeconds": 2,
        "rules": [
            {
                "apiGroups": [""],
                "apiVersions": ["v1"],
                "operations": ["CREATE", "UPDATE"],
                "resources": ["pods", "pods/ephemeralcontainers"],
            }
        ],
        "matchConditions": [{"name": "brings-images", "expression": BRINGS_IMAGES}],
        "clientConfig": {"url": "https://127.0.0.1:1/validate"},
    }
    kind = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
    made = api.post(kind, json={"metadata": {"name": "w"}, "webhooks": [webhook]})
    assert made.status_code == 201, made.text
    deadline = time.monotonic() + 60
    while api.post(PODS, json=pod(f"new-{time.monotonic_ns()}")).status_code != 500:
        assert time.monotonic() < deadline, "the API server asks its webhook"

    assert patch(api, "p", MERGE, metadata={"labels": {"a": "b"}}) == 200
    assert patch(api, "p", STRATEGIC, spec={"containers": [{"name": "c", "image": "c:2"}]}) == 500
    assert patch(api, "p", STRATEGIC, spec={"initContainers": [{"name": "i", "image": "i:2"}]}) == 500
    debug = {"ephemeralContainers": [{"name": "d", "image": "d:1"}]}
    assert patch(api, "p/ephemeralcontainers", STRATEGIC, spec=debug) == 500
    api.delete(f"{PODS}/p").raise_for_status()
    assert patch(api, "p", MERGE, metadata={"finalizers": None}) == 200
    assert api.get(f"{PODS}/p").status_code == 404
