"""The writer on a network whose only way out is a forward proxy: names of sources are known to the proxy alone."""

import base64
import json
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from devcluster.pki import Authority
from model_sync import gguf, store
from tests import tiny_gguf
from tests.service import forward_proxy, origins, private, registries
from tests.service.forward_proxy import ForwardProxy
from tests.service.processes import ROOT, free_port
from tests.service.test_model_sync import model
from tests.service.test_private_sources import REPOSITORY, TAG, Desk

HOST = "files.example.com"
HTTP, HTTPS = f"http://{HOST}/model.gguf", f"https://{HOST}:8443/model.gguf"
CREDENTIAL = "writer:hunter2"
BASIC = f"Basic {base64.b64encode(CREDENTIAL.encode()).decode()}"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return tiny_gguf.make(tmp_path_factory.mktemp("gguf") / "m.gguf", "Hello from outside.").read_bytes()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"), "private")


@pytest.fixture
def desk(tmp_path: Path, authority: Authority) -> Desk:
    return Desk(tmp_path, authority)


@pytest.fixture
def plain(file: bytes) -> Iterator[origins.Origin]:
    with origins.serving(file) as found:
        yield found


@pytest.fixture
def private_(authority: Authority, file: bytes) -> Iterator[private.Server]:
    with private.serving(authority, file, (HOST,)) as found:
        yield found


@pytest.fixture
def proxy(plain: origins.Origin, private_: private.Server) -> Iterator[ForwardProxy]:
    with forward_proxy.serving() as found:
        found.hosts = {f"{HOST}:80": plain.url.split("/")[2], f"{HOST}:8443": private_.address}
        yield found


def test_http_goes_in_absolute_form(proxy: ForwardProxy, plain: origins.Origin, file: bytes, desk: Desk) -> None:
    assert desk.publish(model(HTTP, file), None, proxy.option) == 0, desk.said
    assert desk.names == ["tiny:1"]
    assert proxy.seen == [("GET", HTTP, None)]
    assert plain.peers == proxy.ports, "it has seen the proxy's connection alone"
    assert plain.heads[0]["host"] == HOST


def test_https_goes_through_a_tunnel_that_shows_nothing(proxy: ForwardProxy, private_: private.Server, file: bytes, desk: Desk) -> None:
    private_.wants = "Bearer hunter2-token"
    tokens = {f"{HOST}:8443": "hunter2-token"}
    assert desk.publish(model(HTTPS, file), tokens, proxy.option, trusting=False) == 1
    assert f"error: models.tiny:1.source: got a certificate of {HOST}:8443 that is not trusted (" in desk.said
    assert desk.publish(model(HTTPS, file), tokens, proxy.option) == 0, desk.said
    assert desk.names == ["tiny:1"]
    assert set(proxy.seen) == {("CONNECT", f"{HOST}:8443", None)}
    assert private_.seen == [("/model.gguf", "Bearer hunter2-token")]
    assert private_.peers <= proxy.ports
    assert not [line for line in proxy.heads if "hunter2" in line or "model.gguf" in line]


@pytest.mark.parametrize("source", [HTTP, HTTPS])
def test_the_proxy_alone_sees_its_credential(
    proxy: ForwardProxy, plain: origins.Origin, private_: private.Server, file: bytes, desk: Desk, source: str
) -> None:
    proxy.wants = BASIC
    line = f"error: models.tiny:1.source: got 407 from the proxy {proxy.server}, want a way to {HOST}"
    assert desk.publish(model(source, file), {"127.0.0.1:1": CREDENTIAL}, proxy.option) == 1
    assert line in desk.said
    assert f"; set modelfleet:sourceTokens for {proxy.server}\n" in desk.said
    assert desk.publish(model(source, file), {proxy.server: f"{CREDENTIAL}x"}, proxy.option) == 1
    assert line in desk.said
    assert "; renew its credential in modelfleet:sourceTokens\n" in desk.said
    assert len(proxy.seen) == 2, "a refusal is final"
    assert desk.publish(model(source, file), {proxy.server: CREDENTIAL}, proxy.option) == 0, desk.said
    assert {given for _, _, given in proxy.seen[2:]} == {BASIC}
    assert not [name for head in plain.heads for name in head if name.startswith("proxy-")]
    assert not [name for name in private_.heads if name.startswith("proxy-")]
    assert {given for _, given in private_.seen} <= {None}


def test_a_redirect_takes_the_proxy_again(
    proxy: ForwardProxy, plain: origins.Origin, private_: private.Server, file: bytes, desk: Desk
) -> None:
    """From http to https: what the first server was asked with is not for the second."""
    proxy.wants, plain.moved_to = BASIC, HTTPS
    assert desk.publish(model(HTTP, file), {proxy.server: CREDENTIAL}, proxy.option) == 0, desk.said
    assert proxy.seen == [("GET", HTTP, BASIC), ("CONNECT", f"{HOST}:8443", BASIC)]
    assert "proxy-authorization" not in private_.heads


def test_a_registry_and_its_token_server_are_behind_it(
    proxy: ForwardProxy, authority: Authority, file: bytes, tmp_path: Path, desk: Desk
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(file)
    gguf.add("tiny:1", path, tmp_path / "store")
    manifest = store.manifest_path("tiny:1")
    signer = authority.issue("signer", "signer")
    names = ["127.0.0.1", "registry.example.com"]
    with ExitStack() as stack:
        realm = stack.enter_context(private.serving(authority, names=("auth.example.com",)))
        realm.signer = signer
        auth = private.token_auth("https://auth.example.com/token", authority.certificate_path)
        tls = authority.issue("registry", "registry", names=names)
        there = stack.enter_context(registries.serving(tmp_path / "registry", auth=auth, tls=tls, authority=authority.certificate_path))
        headers = {"Authorization": f"Bearer {private.token(*signer, f'repository:{REPOSITORY}:pull,push')}"}
        trust = ssl.create_default_context(cafile=authority.certificate_path)
        with httpx.Client(trust_env=False, timeout=60, headers=headers, verify=trust) as client:
            origins.upload(client, f"https://{there}", REPOSITORY, TAG, tmp_path / "store", manifest)
        proxy.hosts = {"registry.example.com:443": there, "auth.example.com:443": realm.address}
        declared = model(f"registry://registry.example.com/{REPOSITORY}:{TAG}", (tmp_path / "store" / manifest).read_bytes(), size=2**21)
        assert desk.publish(declared, None, proxy.option) == 0, desk.said
    assert {target for _, target, _ in proxy.seen} == set(proxy.hosts)


@pytest.mark.parametrize("source", [HTTP, HTTPS])
def test_a_proxy_that_is_down_is_named(proxy: ForwardProxy, file: bytes, desk: Desk, source: str) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    assert desk.publish(model(source, file), None, f"--proxy=http://{nobody}") == 1
    assert f"models.tiny:1: {source}: got [Errno 111] Connection refused through the proxy {nobody} after 0 bytes" in desk.said


@pytest.mark.parametrize("source", [HTTP, HTTPS])
def test_a_proxy_that_finds_no_way_is_asked_again_and_named(proxy: ForwardProxy, file: bytes, desk: Desk, source: str) -> None:
    proxy.hosts = {}
    assert desk.publish(model(source, file), None, proxy.option) == 1
    assert f"models.tiny:1: {source}: got status 502 through the proxy {proxy.server} after 0 bytes, want" in desk.said
    assert len(proxy.seen) == 2


@pytest.mark.parametrize("source", [HTTP, HTTPS])
def test_a_proxy_that_is_silent_is_named(proxy: ForwardProxy, file: bytes, desk: Desk, source: str) -> None:
    proxy.silent = True
    assert desk.publish(model(source, file), None, proxy.option, "--silence-s=1") == 1
    assert f" through the proxy {proxy.server} after 0 bytes" in desk.said


def test_what_the_proxy_forbids_is_said_at_once(proxy: ForwardProxy, file: bytes, desk: Desk) -> None:
    proxy.refusal = 403
    assert desk.publish(model(HTTPS, file), None, proxy.option) == 1
    assert f"error: models.tiny:1.source: got 403 from the proxy {proxy.server}, want a way to {HOST}:8443; ask who runs" in desk.said
    # In absolute form nobody can tell whether the proxy or the server has said it.
    assert desk.publish(model(HTTP, file), None, proxy.option) == 1
    assert f"got 403 from {HOST} through the proxy {proxy.server}, want leave to read" in desk.said
    assert len(proxy.seen) == 2


def test_what_is_in_the_cluster_is_asked_without_it(proxy: ForwardProxy, plain: origins.Origin, file: bytes, desk: Desk) -> None:
    assert desk.publish(model(plain.url, file), None, proxy.option) == 0, desk.said
    assert desk.publish(model(plain.url.replace("127.0.0.1", "localhost"), file, name="b:1"), None, proxy.option) == 0, desk.said
    assert desk.publish(model(HTTP, file, name="c:1", digest=f"sha256:{'0' * 64}"), None, proxy.option, "--no-proxy=example.com") == 1
    assert "through the proxy" not in desk.said
    assert proxy.seen == []


def test_no_process_takes_a_proxy_from_its_environment(
    proxy: ForwardProxy, plain: origins.Origin, file: bytes, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain.paths["/api/ps"] = b'{"models": [{"digest": "sha256:00"}]}'
    environment = {"PATH": os.environ["PATH"], "http_proxy": f"http://{proxy.server}", "all_proxy": f"http://{proxy.server}"}
    asking = "import sys; from model_sync.server import loaded_models; print(loaded_models(sys.argv[1]))"
    argv = [sys.executable, "-c", asking, plain.url.removesuffix("/model.gguf")]
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("{'00'}\n", "")
    argv = [sys.executable, "-m", "model_sync", "publish", "/nowhere", str(desk.shared), "--attempts=2"]
    declared = {"MODEL_SYNC_MODELS": json.dumps({"fleet": 0, "models": [model(plain.url, file)]})}
    done = subprocess.run(argv, cwd=ROOT, env={**environment, **declared}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert proxy.seen == []
