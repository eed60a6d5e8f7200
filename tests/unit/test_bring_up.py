"""What `make up` prints at its end, for a stack with TLS and without."""

import json
import socket
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.lifecycle import bring_up
from infra.lifecycle.deployment import Deployment
from infra.preparation.certificates import api_server_tls
from modelfleet_outputs import parse

EXPORTED = json.loads((Path(__file__).parents[1] / "contract" / "outputs-v1.json").read_text())
AUTHORITY = api_server_tls(["a.example.com"])["authority"]
SECURED = {"url": "https://api-server.modelfleet.svc:8000/v1", "authority": AUTHORITY}
NAMED = {"url": "https://models.example.com:8000/v1", "public_url": "https://models.example.com/v1"}


def shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], own: bool, forwarded: bool, **outputs: Any
) -> str:
    monkeypatch.setattr(Deployment, "key", lambda _: "k")
    monkeypatch.setattr(Deployment, "signs_itself", own)
    monkeypatch.setattr(bring_up, "chat", lambda *_, certified, **__: f"asked as {certified.name if certified else 'nobody'}")
    deployment = Deployment(stack="dev", context="theirs", kubeconfig="none", state_dir=tmp_path)
    fleet = parse({**EXPORTED, **outputs})
    bring_up._show(deployment, fleet, f"{fleet.scheme}://198.18.10.11:30080", forwarded=forwarded)
    return capsys.readouterr().out


def test_without_tls_nobody_is_told_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(tmp_path, monkeypatch, capsys, own=False, forwarded=False)
    assert "asked as nobody" in text
    assert "endpoint:  http://198.18.10.11:30080/v1" in text
    assert "try:       curl http://198.18.10.11:30080/v1/chat/completions" in text
    assert "trust" not in text


def test_an_authority_of_ones_own_is_a_file_with_its_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text, file = shown(tmp_path, monkeypatch, capsys, own=True, forwarded=False, **SECURED), tmp_path / "authority.pem"
    assert "asked as api-server.modelfleet.svc" in text
    assert "endpoint:  https://198.18.10.11:30080/v1" in text
    assert f"try:       curl --cacert {file} https://198.18.10.11:30080/v1/chat/completions" in text
    assert f"SSL_CERT_FILE={file}; Node: NODE_EXTRA_CA_CERTS={file}" in text
    assert file.read_text() == AUTHORITY


def test_a_forwarded_port_is_asked_by_a_name_of_the_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(tmp_path, monkeypatch, capsys, own=False, forwarded=True, **NAMED)
    assert "asked as models.example.com" in text
    assert "try:       curl --resolve models.example.com:8000:127.0.0.1 https://models.example.com:8000/v1/chat/completions" in text
    assert "public:    https://models.example.com/v1" in text
    assert "trust" not in text
    assert "curl --cacert" in shown(tmp_path, monkeypatch, capsys, own=True, forwarded=True, **SECURED)


def test_the_first_chat_is_asked_again_when_its_connection_ends_at_a_pod_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = json.dumps({"choices": [{"message": {"content": "Paris."}}]}).encode()
    monkeypatch.setattr(bring_up, "_TURNS_S", 5.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"

        def serve() -> None:
            with listener.accept()[0] as ended:
                ended.recv(1 << 16)
            with listener.accept()[0] as connection:
                connection.recv(1 << 16)
                connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer))

        threading.Thread(target=serve, daemon=True).start()
        assert bring_up.chat(url, "k", "m", "?") == "Paris."
    monkeypatch.setattr(bring_up, "_TURNS_S", 0.0)
    with pytest.raises(httpx.ConnectError):
        bring_up.chat(url, "k", "m", "?")
