"""The image verifier as a process, a real registry, and the real cosign, syft and grype."""

import base64
import json
import os
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from spdx_tools.spdx.parser.parse_anything import parse_file
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

from devcluster import oci, toolchain
from devcluster.oci import Image, RuntimeConfig
from images import signing, supply_chain
from images.supply_chain import NO_LOG, Publisher, Scanner, SupplyChainError
from infra.preparation.certificates import verifier_tls
from tests.service import registries
from tests.service.processes import Service, free_port, refused, running


@dataclass
class Trust:
    """A registry with images, cosign's key pair, and a verifier that trusts it."""

    registry: str
    key: Path
    work: Path
    verifier: Service
    context: ssl.SSLContext
    cosign: str

    def image(self, name: str) -> Image:
        """A new image with one Python package in it, pushed and unsigned."""
        package = self.work / name / "usr" / "lib" / "python3" / "dist-packages" / "tinypackage-1.2.dist-info"
        package.mkdir(parents=True)
        (package / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tinypackage\nVersion: 1.2\nSummary: {name}\n")
        tar = self.work / f"{name}.tar"
        oci.write_tree(tar, [("usr", self.work / name / "usr")])
        image = oci.assemble(f"{self.registry}/test/{name}", [oci.existing_layer(tar)], RuntimeConfig(user="10001"))
        oci.push(image, self.registry, "1")
        return image

    def sign(self, image: Image, *options: str, key: Path | None = None) -> None:
        argv = [self.cosign, "sign", "--key", str(key or self.key), "--yes", *NO_LOG]
        self.run(*argv, "--allow-http-registry", *options, image.reference)

    @staticmethod
    def run(*argv: str) -> None:
        done = subprocess.run(argv, env=os.environ | {"COSIGN_PASSWORD": ""}, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stderr

    def review(self, *images: str, kind: str = "containers") -> Any:
        pod = {"metadata": {"name": "p"}, "spec": {kind: [{"name": "c", "image": image} for image in images]}}
        body = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {"uid": "u1", "namespace": "n", "object": pod}}
        with httpx.Client(verify=self.context, trust_env=False) as client:
            answer = (
                client.post(f"{self.verifier.url.replace('http:', 'https:')}/validate", json=body, timeout=30).raise_for_status().json()
            )
        assert answer["response"]["uid"] == "u1"
        return answer["response"]

    def refusal(self, *images: str, **options: str) -> str:
        response = self.review(*images, **options)
        assert response["allowed"] is False
        return str(response["status"]["message"])


def key_pair(directory: Path, cosign: str) -> Path:
    directory.mkdir()
    done = subprocess.run(
        [cosign, "generate-key-pair"], cwd=directory, env=os.environ | {"COSIGN_PASSWORD": ""}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return directory / "cosign.key"


def verifier_files(work: Path, key: Path) -> tuple[ssl.SSLContext, dict[str, str]]:
    """What a client trusts a verifier with, and the verifier's variables for its certificate, its key and the keys that it knows."""
    pair = json.loads(verifier_tls("modelfleet"))
    (work / "tls.crt").write_text(pair["certificate"])
    (work / "tls.key").write_text(pair["privateKey"])
    context = ssl.create_default_context(cafile=str(work / "tls.crt"))
    context.check_hostname = False
    return context, {
        "VERIFIER_CERTIFICATE_FILE": str(work / "tls.crt"),
        "VERIFIER_KEY_FILE": str(work / "tls.key"),
        "VERIFIER_PUBLIC_KEYS_FILE": str(key.with_suffix(".pub")),
    }


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trust]:
    work = tmp_path_factory.mktemp("trust")
    cosign = str(toolchain.ensure(["cosign"]) / "cosign")
    key = key_pair(work / "keys", cosign)
    context, files = verifier_files(work, key)
    port = free_port()
    with registries.serving(work) as address:
        env = {
            "VERIFIER_HOST": "127.0.0.1",
            "VERIFIER_PORT": str(port),
            **files,
            "VERIFIER_MIRROR": f"http://{address}",
        }
        with running("image_verifier", port, env, work / "verifier.log", ready="") as verifier:
            made = Trust(address, key, work, verifier, context, cosign)
            wait(made)
            yield made


def wait(trust: Trust) -> None:
    for _ in range(200):
        try:
            with httpx.Client(verify=trust.context, trust_env=False) as client:
                client.get(f"{trust.verifier.url.replace('http:', 'https:')}/health").raise_for_status()
            return
        except httpx.HTTPError:
            assert trust.verifier.process.poll() is None, trust.verifier.log.read_text()
            subprocess.run(["sleep", "0.05"])
    raise AssertionError(trust.verifier.log.read_text())


@pytest.mark.parametrize("options", [(), ("--new-bundle-format=false",)], ids=["bundle", "before cosign 3"])
def test_what_cosign_signed_may_run(trust: Trust, options: tuple[str, ...]) -> None:
    image = trust.image(f"signed-{len(options)}")
    assert "want a signature by a key of images.trust" in trust.refusal(image.reference)
    trust.sign(image, *options)
    assert trust.review(image.reference)["allowed"] is True
    assert trust.review(image.reference, kind="initContainers")["allowed"] is True


def test_what_we_signed_cosign_verifies_and_may_run(trust: Trust) -> None:
    image = trust.image("ours")
    directory = trust.work / "ours-key"
    public = signing.sign([image], trust.registry, directory)
    (directory / "ours.pub").write_text(public)
    trust.run(
        trust.cosign, "verify", "--key", str(directory / "ours.pub"), "--insecure-ignore-tlog", "--allow-http-registry", image.reference
    )
    assert "want a signature by a key of images.trust" in trust.refusal(image.reference), "that key is not trusted here"


def test_a_signature_by_another_key_does_not_count(trust: Trust) -> None:
    image = trust.image("stranger")
    trust.sign(image, key=key_pair(trust.work / "stranger-keys", trust.cosign))
    assert f"spec.containers[0].image: got {image.reference}, want a signature by a key of images.trust" in trust.refusal(image.reference)


def test_an_sbom_is_no_permission_to_run(trust: Trust, tmp_path: Path) -> None:
    image = trust.image("described")
    (tmp_path / "predicate.json").write_text("{}")
    argv = [trust.cosign, "attest", "--key", str(trust.key), "--yes", *NO_LOG]
    trust.run(*argv, "--allow-http-registry", "--type", "spdxjson", "--predicate", str(tmp_path / "predicate.json"), image.reference)
    assert "want a signature" in trust.refusal(image.reference)


@pytest.mark.parametrize("suffix", ["", ".sig"], ids=["bundle", "before cosign 3"])
def test_a_signature_of_another_image_does_not_count(trust: Trust, suffix: str) -> None:
    signed, other = trust.image(f"original{suffix.strip('.')}"), trust.image(f"copy{suffix.strip('.')}")
    trust.sign(signed, *(["--new-bundle-format=false"] if suffix else []))
    moved = replace(other, name=signed.name)
    oci.push(moved, trust.registry, "moved")
    accept = {"Accept": f"{oci.MANIFEST}, {oci.INDEX}"}
    with httpx.Client(base_url=f"http://{trust.registry}/v2/{oci.repository(signed.name)}/", trust_env=False) as client:
        found = client.get(f"manifests/{signed.digest.replace(':', '-')}{suffix}", headers=accept).raise_for_status()
        tag = f"{moved.digest.replace(':', '-')}{suffix}"
        client.put(f"manifests/{tag}", content=found.content, headers={"Content-Type": found.headers["content-type"]}).raise_for_status()
    assert trust.review(signed.reference)["allowed"] is True
    assert "want a signature" in trust.refusal(moved.reference)


def test_a_tag_is_refused_and_every_image_is_named(trust: Trust) -> None:
    signed = trust.image("beside")
    trust.sign(signed)
    message = trust.refusal(signed.reference, "modelfleet/api-server:latest", "busybox")
    assert message.splitlines() == [
        "spec.containers[1].image: got 'modelfleet/api-server:latest', want an image by digest, since a tag can move; write repository@sha256:…",
        "spec.containers[2].image: got 'busybox', want an image by digest, since a tag can move; write repository@sha256:…",
    ]


def test_a_registry_that_does_not_answer_lets_nothing_pass(trust: Trust, tmp_path: Path) -> None:
    port = free_port()
    environment = {
        "VERIFIER_HOST": "127.0.0.1",
        "VERIFIER_PORT": str(port),
        "VERIFIER_CERTIFICATE_FILE": str(trust.work / "tls.crt"),
        "VERIFIER_KEY_FILE": str(trust.work / "tls.key"),
        "VERIFIER_PUBLIC_KEYS_FILE": str(trust.key.with_suffix(".pub")),
        "VERIFIER_MIRROR": f"http://127.0.0.1:{free_port()}",
    }
    image = trust.image("unreachable")
    trust.sign(image)
    with running("image_verifier", port, environment, tmp_path / "log", ready="") as verifier:
        blind = replace(trust, verifier=verifier)
        wait(blind)
        assert "whose signature cannot be read" in blind.refusal(image.reference)


def test_wrong_settings_end_the_start_with_one_line_each(tmp_path: Path) -> None:
    status, error = refused("image_verifier", {"VERIFIER_MIRROR": "registry", "VERIFIER_NONSENSE": "1"})
    assert status == 2
    for name in ("CERTIFICATE_FILE", "KEY_FILE", "PUBLIC_KEYS_FILE"):
        assert f"VERIFIER_{name}: got nothing, want a value; set the variable" in error
    assert "VERIFIER_NONSENSE: got an unknown variable, want one of" in error
    assert "VERIFIER_MIRROR: got 'registry', want" in error
    keys = tmp_path / "keys"
    keys.write_text("no key")
    files: dict[str, str] = dict.fromkeys(("VERIFIER_CERTIFICATE_FILE", "VERIFIER_KEY_FILE", "VERIFIER_PUBLIC_KEYS_FILE"), str(keys))
    assert refused("image_verifier", files)[1].startswith(f"error: {keys}: got 0 keys, want one or more of type ECDSA or Ed25519")


def vulnerability_database(work: Path, severity: str) -> dict[str, str]:
    """Environment in which grype knows one advisory, of the package that every image of this file has."""
    binaries = toolchain.ensure(["grype"])
    (work / "db").mkdir(parents=True)
    subprocess.run([str(binaries / "fixturedb"), str(work / "db"), "python", "tinypackage", "<2", severity], check=True)
    subprocess.run(["tar", "-C", str(work / "db"), "-czf", str(work / "db.tar.gz"), "vulnerability.db"], check=True)
    env = {
        "GRYPE_DB_CACHE_DIR": str(work / "cache"),
        "GRYPE_DB_AUTO_UPDATE": "false",
        "GRYPE_DB_VALIDATE_AGE": "false",
        "GRYPE_CHECK_FOR_APP_UPDATE": "false",
    }
    argv = [str(binaries / "grype"), "db", "import", str(work / "db.tar.gz"), "--quiet"]
    subprocess.run(argv, env=os.environ | env, check=True, capture_output=True)
    return env | {"COSIGN_PASSWORD": ""}


def test_an_image_is_signed_with_its_sbom_and_its_report_beside_it(trust: Trust, tmp_path: Path) -> None:
    image = trust.image("published")
    env = vulnerability_database(tmp_path, "medium")
    found = Publisher(key=trust.key, plain_http=True, env=env).publish(image.reference)
    assert found == {"medium": 1}
    assert trust.review(image.reference)["allowed"] is True
    public = str(trust.key.with_suffix(".pub"))
    for kind, name in (("spdxjson", "sbom.spdx.json"), ("vuln", "scan.json")):
        argv = [trust.cosign, "verify-attestation", "--key", public, "--type", kind, "--insecure-ignore-tlog", "--allow-http-registry"]
        done = subprocess.run([*argv, image.reference], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        statement = json.loads(base64.b64decode(json.loads(done.stdout.splitlines()[0])["payload"]))
        (tmp_path / name).write_text(json.dumps(statement["predicate"]))
    document = parse_file(str(tmp_path / "sbom.spdx.json"))
    assert validate_full_spdx_document(document) == []
    assert ("tinypackage", "1.2") in {(package.name, package.version) for package in document.packages}
    matches = json.loads((tmp_path / "scan.json").read_text())["scanner"]["result"]["matches"]
    assert [match["vulnerability"]["id"] for match in matches] == ["GHSA-test-test-test"]


def test_what_was_signed_is_refused_by_a_later_scan_that_knows_more(trust: Trust, tmp_path: Path) -> None:
    image = trust.image("aged")
    before, after = (vulnerability_database(tmp_path / severity, severity) for severity in ("low", "critical"))
    assert Publisher(key=trust.key, plain_http=True, env=before).publish(image.reference) == {"low": 1}
    assert Scanner(plain_http=True, env=before).scan(image.reference) == {"low": 1}
    with pytest.raises(SupplyChainError, match=r"got 1 critical vulnerabilities, want none of critical or worse"):
        Scanner(plain_http=True, env=after).scan(image.reference)
    assert trust.review(image.reference)["allowed"] is True, "a scan signs nothing, and takes no signature back"


def test_a_scan_of_several_images_says_their_sums(trust: Trust, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, summary = [trust.image(name).reference for name in ("sum-1", "sum-2")], tmp_path / "summary.json"
    for name, value in vulnerability_database(tmp_path, "critical").items():
        monkeypatch.setenv(name, value)
    assert supply_chain.main([*images, f"{trust.registry}/test/x:1", "--plain-http", "--summary", str(summary)]) == 1
    none = dict.fromkeys(("unknown", "negligible", "low", "medium", "high"), 0)
    assert json.loads(summary.read_text()) == {"images": 3, "unread": 1, "vulnerabilities": {**none, "critical": 2}}


def test_an_image_with_a_critical_vulnerability_is_not_signed(trust: Trust, tmp_path: Path) -> None:
    image = trust.image("vulnerable")
    publisher = Publisher(key=trust.key, plain_http=True, env=vulnerability_database(tmp_path, "critical"))
    with pytest.raises(SupplyChainError, match=r"got 1 critical vulnerabilities, want none of critical or worse"):
        publisher.publish(image.reference)
    assert "want a signature" in trust.refusal(image.reference)


def test_a_tag_is_not_published(trust: Trust, capsys: pytest.CaptureFixture[str]) -> None:
    assert supply_chain.main([f"{trust.registry}/test/x:1", "--key", str(trust.key)]) == 1
    assert "got a tag, want a digest, since a tag can move" in capsys.readouterr().err
