"""The writer at sources that ask for a credential and have a certificate of a private authority."""

import base64
import json
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from devcluster.pki import Authority
from model_sync import catalog, gguf, store
from model_sync.access import Access
from tests import tiny_gguf
from tests.service import origins, private, registries
from tests.service.processes import ROOT
from tests.service.test_model_sync import model, sha256

USER = "reader:hunter2-colon:in-it"
BASIC = f"Basic {base64.b64encode(USER.encode()).decode()}"
REPOSITORY, TAG = "team/tiny", "1"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return tiny_gguf.make(tmp_path_factory.mktemp("gguf") / "m.gguf", "Hello from behind a door.").read_bytes()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"), "private")


@pytest.fixture
def server(authority: Authority, file: bytes) -> Iterator[private.Server]:
    with private.serving(authority, file) as found:
        yield found


@pytest.fixture
def elsewhere(authority: Authority, file: bytes) -> Iterator[private.Server]:
    with private.serving(authority, file) as found:
        yield found


class Desk:
    """Where a writer runs: its files, its shared store, and what it said."""

    def __init__(self, work: Path, authority: Authority) -> None:
        self.shared, self.authority = work / "shared", authority
        self.tokens = work / "credentials.json"
        self.shared.mkdir()
        self.said = ""

    def publish(self, declared: dict[str, Any], tokens: Mapping[str, str] | None = None, *options: str, trusting: bool = True) -> int:
        environment = {"PATH": os.environ["PATH"], "MODEL_SYNC_MODELS": json.dumps({"fleet": 0, "models": [declared]})}
        argv = [sys.executable, "-m", "model_sync", "publish", "/nowhere", str(self.shared), "--attempts=2", *options]
        argv += [f"--ca-bundle={self.authority.certificate_path}"] if trusting else []
        if tokens:
            self.tokens.write_text(json.dumps(tokens))
            argv.append(f"--credentials={self.tokens}")
        done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
        self.said = done.stdout + done.stderr
        assert not [secret for secret in (tokens or {}).values() if secret in self.said]
        assert done.stderr.count("\n") == (1 if done.returncode else 0), self.said
        return done.returncode

    @property
    def names(self) -> list[str]:
        return [entry.name for entry in (catalog.read(self.shared) or catalog.Catalog()).models]


@pytest.fixture
def desk(tmp_path: Path, authority: Authority) -> Desk:
    return Desk(tmp_path, authority)


def test_a_private_authority_is_trusted_when_it_is_declared(server: private.Server, file: bytes, desk: Desk) -> None:
    assert desk.publish(model(server.url, file), trusting=False) == 1
    assert f"error: models.tiny:1.source: got a certificate of {server.address} that is not trusted (" in desk.said
    assert "set delivery.caBundle" in desk.said
    assert server.seen == []
    assert desk.publish(model(server.url, file)) == 0, desk.said
    assert desk.names == ["tiny:1"]


@pytest.mark.parametrize(("credential", "header"), [("hunter2-token", "Bearer hunter2-token"), (USER, BASIC)])
def test_a_file_server_sees_the_credential_of_its_own(
    server: private.Server, file: bytes, desk: Desk, credential: str, header: str
) -> None:
    server.wants = header
    assert desk.publish(model(server.url, file)) == 1
    assert f"error: models.tiny:1.source: got 401 from {server.address}, want leave to read" in desk.said
    assert f"; set modelfleet:sourceTokens for {server.address}, or correct the source" in desk.said
    assert desk.publish(model(server.url, file), {"127.0.0.1:1": credential}) == 1
    assert {given for _, given in server.seen} == {None}, "another port is another server"
    assert desk.publish(model(server.url, file), {server.address: f"{credential}x"}) == 1
    assert f"got 403 from {server.address} with its credential, want leave to read; renew it in modelfleet:sourceTokens" in desk.said
    assert desk.publish(model(server.url, file), {server.address: credential}) == 0, desk.said
    assert desk.names == ["tiny:1"]


def test_a_redirect_to_another_server_is_followed_without_the_credential(
    server: private.Server, elsewhere: private.Server, file: bytes, desk: Desk
) -> None:
    server.wants, server.moved_to = BASIC, elsewhere.url
    assert desk.publish(model(server.url, file), {server.address: USER}) == 0, desk.said
    assert elsewhere.seen == [("/model.gguf", None)]
    assert server.seen == [("/model.gguf", BASIC)]
    # Not with its own either: who redirects must not be able to spend it.
    blob = desk.shared / "blobs" / sha256(file).replace(":", "-")
    blob.unlink()
    elsewhere.wants = "Bearer other"
    assert desk.publish(model(server.url, file), {server.address: USER, elsewhere.address: "other"}) == 1
    assert f"got 401 from {elsewhere.address}, where {server.address} redirects to, want the content" in desk.said
    assert {given for _, given in elsewhere.seen} == {None}


def test_a_redirect_on_the_same_server_keeps_the_credential(server: private.Server, file: bytes, desk: Desk) -> None:
    """It answers to the same path again and again here, so the writer gives up; every request was one with the credential."""
    server.wants, server.moved_to = BASIC, "/elsewhere.gguf"
    assert desk.publish(model(server.url, file), {server.address: USER}) == 1
    assert len(server.seen) > 1
    assert {given for _, given in server.seen} == {BASIC}


@pytest.mark.parametrize("scheme", ["http", "registry+http"])
def test_without_tls_no_credential_is_sent(file: bytes, desk: Desk, scheme: str) -> None:
    with origins.serving(file) as origin:
        origin.failures, origin.failure_status = 99, 401
        address = origin.url.split("/")[2]
        source = origin.url if scheme == "http" else f"registry+http://{address}/{REPOSITORY}:{TAG}"
        assert desk.publish(model(source, file), {address: USER}) == 1
    assert (
        f"error: models.tiny:1.source: got 401 from {address}, want leave to read; open it to the writer, or serve it over TLS" in desk.said
    )


class Registry:
    """A real registry that lets in who has a token, and the server that gives tokens out."""

    def __init__(self, address: str, realm: private.Server, manifest: bytes) -> None:
        self.address, self.realm, self.manifest = address, realm, manifest

    def model(self) -> dict[str, Any]:
        return model(f"registry://{self.address}/{REPOSITORY}:{TAG}", self.manifest, size=2**21)


@pytest.fixture
def registry(tmp_path: Path, authority: Authority, file: bytes) -> Iterator[Registry]:
    signer = authority.issue("signer", "signer")
    path = tmp_path / "m.gguf"
    path.write_bytes(file)
    gguf.add("tiny:1", path, tmp_path / "store")
    manifest = store.manifest_path("tiny:1")
    with (
        private.serving(authority) as realm,
        registries.serving(
            tmp_path / "registry",
            auth=private.token_auth(f"https://{realm.address}/token", authority.certificate_path),
            tls=authority.issue("registry", "registry", names=["127.0.0.1"]),
            authority=authority.certificate_path,
        ) as address,
    ):
        realm.signer = signer
        headers = {"Authorization": f"Bearer {private.token(*signer, f'repository:{REPOSITORY}:pull,push')}"}
        trust = ssl.create_default_context(cafile=authority.certificate_path)
        with httpx.Client(trust_env=False, timeout=60, headers=headers, verify=trust) as client:
            origins.upload(client, f"https://{address}", REPOSITORY, TAG, tmp_path / "store", manifest)
        yield Registry(address, realm, (tmp_path / "store" / manifest).read_bytes())


def test_a_registry_gets_the_token_that_it_asks_for_without_a_credential(registry: Registry, desk: Desk) -> None:
    assert desk.publish(registry.model()) == 0, desk.said
    assert desk.names == ["tiny:1"]
    ((path, given),) = registry.realm.seen
    assert given is None
    assert path == "/token?service=models&scope=repository%3Ateam%2Ftiny%3Apull"


def test_a_token_server_sees_its_own_credential_and_not_the_registrys(registry: Registry, desk: Desk) -> None:
    registry.realm.wants = BASIC
    assert desk.publish(registry.model(), {registry.address: "robot:hunter2"}) == 1
    assert {given for _, given in registry.realm.seen} == {None}
    assert (
        f"error: models.tiny:1.source: got 401 from {registry.realm.address}, want leave to read; set modelfleet:sourceTokens" in desk.said
    )
    assert desk.publish(registry.model(), {registry.realm.address: "reader:wrong"}) == 1
    assert f"got 403 from {registry.realm.address} with its credential" in desk.said
    assert desk.publish(registry.model(), {registry.realm.address: USER}) == 0, desk.said
    assert desk.names == ["tiny:1"]


def test_a_token_that_is_refused_is_not_asked_for_for_ever(registry: Registry, desk: Desk) -> None:
    registry.realm.lifetime_s = -100
    assert desk.publish(registry.model()) == 1
    assert f"got 401 from {registry.address}, want leave to read" in desk.said
    assert len(registry.realm.seen) == 1


def test_a_token_is_used_until_it_expires(registry: Registry, authority: Authority) -> None:
    signer = authority.issue("signer", "signer")
    expired = private.token(*signer, f"repository:{REPOSITORY}:pull", lifetime_s=-100)
    access = Access(ca_bundle=authority.certificate_path, _pull_tokens={(registry.address, REPOSITORY): expired})
    url = f"https://{registry.address}/v2/{REPOSITORY}/manifests/{TAG}"
    for _ in range(3):
        with access.open(url, {"Accept": "application/vnd.docker.distribution.manifest.v2+json"}, REPOSITORY) as response:
            assert response.read() == registry.manifest
    assert len(registry.realm.seen) == 1


def test_a_token_server_that_talks_nonsense_is_named(registry: Registry, desk: Desk) -> None:
    registry.realm.signer = None
    for registry.realm.content in (b"", b"[]", b'{"token": 1}', b'{"token": "two\\nlines"}'):
        assert desk.publish(registry.model()) == 1
        assert f"got no token from {registry.realm.address}, want one for repository:{REPOSITORY}:pull" in desk.said


@pytest.mark.parametrize("content", ["", "[]", '{"host": 1}', '{"host": "hunter2"'])
def test_a_file_without_credentials_is_named_and_not_echoed(server: private.Server, file: bytes, desk: Desk, content: str) -> None:
    desk.tokens.write_text(content)
    argv = [sys.executable, "-m", "model_sync", "publish", "/nowhere", str(desk.shared), f"--credentials={desk.tokens}"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert (
        done.stderr
        == f"error: {desk.tokens}: got no credentials, want a JSON map of host to credential; set modelfleet:sourceTokens again\n"
    )
