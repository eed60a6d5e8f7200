"""The image verifier at registries and reviews that mean it no good: a process with the memory of its pod, and a registry of ours that lies."""

import base64
import json
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from infra.preparation.certificates import verifier_tls
from tests.service.processes import Service, free_port, running

HEX = "0" * 64
IMAGE = f"registry.example.com/team/app@sha256:{HEX}"
OTHER = f"registry.example.com/team/app@sha256:{'1' * 64}"
MEMORY = 128 << 20
"""The limit of its pod (infra/program/settings/images.py)."""


@dataclass
class Registry:
    """Answers of a registry by the end of their path; 404 for any other. Change them between requests."""

    answers: dict[str, bytes] = field(default_factory=dict)
    endless: bool = False
    """Every answer is 300 MiB long."""
    moved_to: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    address: str = ""


class _Handler(BaseHTTPRequestHandler):
    registry: Registry

    def do_GET(self) -> None:
        registry = self.registry
        registry.asked.append(self.path)
        body = next((content for end, content in registry.answers.items() if self.path.endswith(end)), None)
        self.send_response(302 if registry.moved_to else 200 if body is not None or registry.endless else 404)
        if registry.moved_to:
            self.send_header("Location", registry.moved_to)
        for name, value in registry.headers.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            for _ in range(300 if registry.endless else 0):
                self.wfile.write(bytes(1 << 20))
            self.wfile.write(body or b"")
        except OSError:
            pass  # The verifier has read enough.

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def registry() -> Iterator[Registry]:
    made = Registry()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"registry": made}))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    made.address = f"127.0.0.1:{server.server_port}"
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@dataclass
class Verifier:
    service: Service
    context: ssl.SSLContext

    def post(self, body: Any) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        with httpx.Client(verify=self.context, trust_env=False, timeout=30) as client:
            return client.post(f"{self.service.url.replace('http:', 'https:')}/validate", content=content)

    def review(self, pod: Any, old: Any = None, operation: str = "CREATE") -> tuple[bool, str]:
        """Whether it is allowed, and why not."""
        request = {"uid": "u1", "namespace": "n", "operation": operation, "object": pod} | ({"oldObject": old} if old else {})
        found = self.post({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}).raise_for_status().json()
        assert found["response"]["uid"] == "u1"
        return found["response"]["allowed"], found["response"].get("status", {}).get("message", "")

    def memory(self) -> int:
        """The most that it ever had resident, bytes."""
        status = Path(f"/proc/{self.service.process.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) << 10


Start = Callable[..., Verifier]


@pytest.fixture
def start(tmp_path: Path, registry: Registry, key: ec.EllipticCurvePrivateKey) -> Iterator[Start]:
    pair = json.loads(verifier_tls("modelfleet"))
    (tmp_path / "tls.crt").write_text(pair["certificate"])
    (tmp_path / "tls.key").write_text(pair["privateKey"])
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "cosign.pub").write_bytes(public)
    context = ssl.create_default_context(cafile=str(tmp_path / "tls.crt"))
    context.check_hostname = False
    with ExitStack() as stack:

        def begin(**variables: str) -> Verifier:
            port = free_port()
            settings = {
                "HOST": "127.0.0.1",
                "PORT": str(port),
                "CERTIFICATE_FILE": str(tmp_path / "tls.crt"),
                "KEY_FILE": str(tmp_path / "tls.key"),
                "PUBLIC_KEYS_FILE": str(tmp_path / "cosign.pub"),
                "MIRROR": f"http://{registry.address}",
                **variables,
            }
            env = {f"VERIFIER_{name}": value for name, value in settings.items()}
            service = stack.enter_context(running("image_verifier", port, env, tmp_path / "verifier.log", ready=""))
            made = Verifier(service, context)
            deadline = time.monotonic() + 60
            while True:
                try:
                    with httpx.Client(verify=context, trust_env=False) as client:
                        client.get(f"https://127.0.0.1:{port}/health").raise_for_status()
                    return made
                except httpx.HTTPError:
                    assert time.monotonic() < deadline, service.log.read_text()
                    time.sleep(0.05)

        yield begin


def pod(*images: str, volumes: list[dict[str, Any]] | None = None, **metadata: str) -> dict[str, Any]:
    spec: dict[str, Any] = {"containers": [{"name": "c", "image": image} for image in images]}
    return {"metadata": {"name": "p", **metadata}, "spec": spec | ({"volumes": volumes} if volumes else {})}


def signed(registry: Registry, key: ec.EllipticCurvePrivateKey, image: str) -> None:
    """In the older of cosign's forms."""
    digest = image.partition("@")[2]
    payload = json.dumps({"critical": {"type": "cosign container image signature", "image": {"docker-manifest-digest": digest}}}).encode()
    signature = base64.b64encode(key.sign(payload, ec.ECDSA(hashes.SHA256()))).decode()
    blob = f"sha256:{sha256(payload).hexdigest()}"
    layer = {"digest": blob, "annotations": {"dev.cosignproject.cosign/signature": signature}}
    registry.answers[f"{digest.replace(':', '-')}.sig"] = json.dumps({"layers": [layer]}).encode()
    registry.answers[blob] = payload


def test_b3_an_answer_without_end_is_read_to_its_limit(start: Start, registry: Registry) -> None:
    verifier = start()
    before = verifier.memory()
    registry.endless = True
    allowed, message = verifier.review(pod(*[IMAGE] * 20))
    assert not allowed
    assert "want a manifest or a signature" in message
    assert verifier.memory() - before < 32 << 20
    assert verifier.memory() < MEMORY


def test_b3_what_is_compressed_is_not_unpacked(start: Start, registry: Registry) -> None:
    registry.headers = {"Content-Encoding": "gzip"}
    registry.answers["referrers/" + IMAGE.partition("@")[2]] = b"\x1f\x8b"
    allowed, message = start().review(pod(IMAGE))
    assert (allowed, "want a signature" in message) == (False, True), message


LAYER = {"digest": f"sha256:{HEX}"}


@pytest.mark.parametrize(
    "document",
    [
        {"layers": [LAYER | {"annotations": None}]},
        {"layers": [LAYER | {"annotations": 5}]},
        {"layers": [LAYER | {"annotations": {"dev.cosignproject.cosign/signature": 5}}]},
        {"layers": None},
        {"layers": [5]},
        {"layers": [{"digest": "sha256:../../x"}]},
        {"manifests": [{"digest": 1}]},
        [],
    ],
)
def test_b3_a_signature_that_is_none_is_no_signature(start: Start, registry: Registry, document: Any) -> None:
    registry.answers = {"": json.dumps(document).encode()}
    allowed, message = start().review(pod(IMAGE))
    assert not allowed
    assert f"spec.containers[0].image: got {IMAGE}, want a signature by a key of images.trust" in message


def test_b3_deep_json_is_no_signature(start: Start, registry: Registry) -> None:
    registry.answers = {"": b"[" * 500_000}
    verifier = start()
    assert "want a signature" in verifier.review(pod(IMAGE))[1]
    bundle = b'{"dsseEnvelope":' + b"[" * 500_000
    digest = f"sha256:{sha256(bundle).hexdigest()}"
    entry = {"digest": f"sha256:{HEX}", "artifactType": "application/vnd.dev.sigstore.bundle.v0.3+json"}
    registry.answers = {
        f"referrers/{IMAGE.partition('@')[2]}": json.dumps({"manifests": [entry]}).encode(),
        f"manifests/sha256:{HEX}": json.dumps({"layers": [{"digest": digest}]}).encode(),
        digest: bundle,
    }
    assert "want a signature" in verifier.review(pod(IMAGE))[1]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{}", "request: got field required, want an AdmissionReview of a pod; correct the webhook"),
        (b"", "the body: got invalid json"),
        (b"[" * 100_000, "the body: got invalid json"),
        (b"\xff", "the body: got invalid json"),
        (b'{"request": {"uid": "u", "object": {"spec": {"containers": 5}}}}', "request.object.spec.containers: got"),
        (b'{"request": {"uid": "u", "object": null}}', "request.object: got"),
        (b'{"request": {"uid": "u", "object": {"spec": {"containers": [{"image": 1}]}}}}', "request.object.spec.containers.0.image: got"),
    ],
)
def test_b3_what_is_no_review_is_answered_with_what_is_missing(start: Start, body: bytes, says: str) -> None:
    answer = start().post(body)
    assert (answer.status_code, answer.text.startswith(says)) == (400, True), answer.text


def test_b3_a_pod_as_large_as_etcd_takes_twice_is_read(start: Start) -> None:
    large = pod("busybox", note="x" * 1_500_000)
    allowed, message = start().review(large, old=pod("other", note="x" * 1_500_000), operation="UPDATE")
    assert (allowed, "want an image by digest" in message) == (False, True)


def test_b3_an_image_of_a_volume_must_be_signed_too(start: Start, registry: Registry, key: ec.EllipticCurvePrivateKey) -> None:
    signed(registry, key, IMAGE)
    verifier = start()
    volumes = [{"name": "tmp", "emptyDir": {}}, {"name": "v", "image": {"reference": "team/data:1", "pullPolicy": "Always"}}]
    allowed, message = verifier.review(pod(IMAGE, volumes=volumes))
    assert (allowed, message.startswith("spec.volumes[1].image.reference: got 'team/data:1', want an image by digest")) == (False, True)
    volumes[1]["image"] = {"reference": OTHER}
    assert "spec.volumes[1].image.reference: got" in verifier.review(pod(IMAGE, volumes=volumes))[1]
    signed(registry, key, OTHER)
    assert verifier.review(pod(IMAGE, volumes=volumes)) == (True, "")


def test_b3_a_registry_that_is_not_allowed_is_not_even_asked(start: Start, registry: Registry, key: ec.EllipticCurvePrivateKey) -> None:
    signed(registry, key, IMAGE)
    verifier = start(REGISTRIES="registry.example.com,other.example.com:5000")
    assert verifier.review(pod(IMAGE)) == (True, "")
    before = len(registry.asked)
    for image in (IMAGE.replace("registry.", "evil."), f"busybox@sha256:{HEX}", IMAGE.replace(".com", ".com:5000")):
        allowed, message = verifier.review(pod(image))
        assert not allowed
        assert f"got {image}, want an image of registry.example.com, other.example.com:5000; push it there" in message
    assert len(registry.asked) == before


def test_b3_trust_expires(start: Start, registry: Registry, key: ec.EllipticCurvePrivateKey) -> None:
    signed(registry, key, IMAGE)
    verifier = start(TRUST_S="2")
    assert verifier.review(pod(IMAGE))[0]
    registry.answers.clear()
    before = len(registry.asked)
    assert verifier.review(pod(IMAGE))[0]
    assert len(registry.asked) == before, "believed without a question"
    time.sleep(2.1)
    assert "want a signature" in verifier.review(pod(IMAGE))[1]


def test_b3_a_registry_that_is_slow_takes_the_time_of_one_pod_not_of_one_image(start: Start, registry: Registry) -> None:
    verifier = start(TIMEOUT_S="1", MIRROR="http://192.0.2.1")
    started = time.monotonic()
    allowed, message = verifier.review(pod(*[IMAGE] * 40))
    assert time.monotonic() - started < 4
    assert (allowed, message.count("\n")) == (False, 39)


def test_a_redirect_goes_nowhere_plainer(start: Start, registry: Registry) -> None:
    registry.moved_to = "http://127.0.0.1:1/internal"
    assert "got a redirect to http://127.0.0.1:1, want one over HTTPS" in start().review(pod(IMAGE))[1]


def test_redirects_in_a_circle_end(start: Start, registry: Registry) -> None:
    registry.moved_to = "/v2/round"
    assert "got more than 3 redirects" in start().review(pod(IMAGE))[1]
    assert len(registry.asked) == 4


def test_i16_an_update_is_judged_by_what_it_changes(start: Start, registry: Registry, key: ec.EllipticCurvePrivateKey) -> None:
    """Finalizers and labels of pods that run come and go while no registry answers, also for a verifier that was just started."""
    verifier = start(MIRROR="http://127.0.0.1:1", TIMEOUT_S="2")
    old = pod(IMAGE, "unsigned:1")
    assert verifier.review(old | {"metadata": {"name": "p", "labels": {"a": "b"}}}, old, "UPDATE") == (True, "")
    assert "spec.containers[0].image: got 'other:2'" in verifier.review(pod("other:2", IMAGE), old, "UPDATE")[1]
    debug = pod(IMAGE, "unsigned:1")
    debug["spec"]["ephemeralContainers"] = [{"name": "d", "image": "busybox"}]
    assert "spec.ephemeralContainers[0].image: got 'busybox'" in verifier.review(debug, old, "UPDATE")[1]
    debug["spec"]["ephemeralContainers"] = [{"name": "d", "image": IMAGE}]
    assert verifier.review(debug, old, "UPDATE") == (True, ""), "the image of the pod itself"
    closed = start(MIRROR="http://127.0.0.1:1", TIMEOUT_S="2", DEBUG_CONTAINERS="0")
    assert "spec.ephemeralContainers: got another one in production, want none" in closed.review(debug, old, "UPDATE")[1]
    assert closed.review(debug, debug, "UPDATE") == (True, ""), "one that is there is no reason against a label"
    leaving = pod("unsigned:1", deletionTimestamp="2026-11-25T00:00:00Z")
    assert verifier.review(pod("other:2"), leaving, "UPDATE") == (True, "")
    assert verifier.review(old)[0] is False, "a new pod is judged whole"
