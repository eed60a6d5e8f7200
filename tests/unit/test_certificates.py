"""Certificates that the program itself makes, as their command prints them."""

import contextlib
import io
import itertools
import json
import ssl
from pathlib import Path

import pytest
from cryptography import x509

from infra.preparation import certificates


def made(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, str]:
    certificates.main(arguments)
    return dict(json.loads(capsys.readouterr().out))


def names(pair: dict[str, str]) -> set[str]:
    found = x509.load_pem_x509_certificate(pair["certificate"].encode()).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return {str(each.value) for each in found.value}


def test_the_api_servers_is_for_its_service_and_for_what_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    found = made(capsys, "team-b", "--api-server", "models.example.com", "10.0.0.1")
    assert names(found) >= {"api-server.team-b.svc", "localhost", "127.0.0.1", "models.example.com", "10.0.0.1"}
    leaf, authority = (x509.load_pem_x509_certificate(found[part].encode()) for part in ("certificate", "authority"))
    leaf.verify_directly_issued_by(authority)
    assert leaf.not_valid_after_utc < authority.not_valid_after_utc


def test_it_stays_while_it_is_good_and_its_authority_longer(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    first = made(capsys, "team-b", "--api-server")
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(first)))
    assert made(capsys, "team-b", "--api-server", "--renew") == first
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(first)))
    other = made(capsys, "team-b", "--renew", "--api-server", "models.example.com")
    assert (other["authority"], other["certificate"] == first["certificate"]) == (first["authority"], False)


def test_it_is_renewed_in_the_last_third_of_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    first, now = certificates.api_server_tls(["a.example.com"]), certificates._now()
    for days, stays in ((260, True), (270, False)):
        monkeypatch.setattr(certificates, "_now", lambda days=days: now + certificates.datetime.timedelta(days))
        assert (certificates.api_server_tls(["a.example.com"], first) == first) is stays
    monkeypatch.setattr(certificates, "_now", lambda: now + certificates.datetime.timedelta(3400))
    last = certificates.api_server_tls(["a.example.com"], first)
    assert last["authority"] != first["authority"], "it would end before what it signs"


def test_the_verifiers_is_its_own_authority(capsys: pytest.CaptureFixture[str]) -> None:
    found = made(capsys, "team-b")
    assert set(found) == {"certificate", "privateKey"}
    assert names(found) == {"image-verifier.team-b-admission.svc"}


def shakes_hands(presented: str, key: str, trusted: str, work: Path) -> bool:
    """Whether a client that trusts some certificates takes a server with that file and key. No socket is needed for it."""
    (work / "tls.crt").write_text(presented)
    (work / "tls.key").write_text(key)
    server_side, client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context(cadata=trusted)
    server_side.load_cert_chain(work / "tls.crt", work / "tls.key")
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_side.wrap_bio(down, up, server_hostname="image-verifier.team-admission.svc")
    server = server_side.wrap_bio(up, down, server_side=True)
    try:
        for _ in range(3):
            for side in (client, server):
                with contextlib.suppress(ssl.SSLWantReadError):
                    side.do_handshake()
    except ssl.SSLCertVerificationError:
        return False
    return client.version() is not None


def test_a_verifiers_certificate_is_renewed_without_a_moment_of_mistrust(tmp_path: Path) -> None:
    """The steps of docs/images.md. Within one the verifier's pods and the webhook change at different times."""
    old, new = (json.loads(certificates.verifier_tls("team")) for _ in range(2))
    both, turned = old["certificate"] + new["certificate"], new["certificate"] + old["certificate"]
    steps = [
        (old["certificate"], old["privateKey"]),
        (both, old["privateKey"]),
        (turned, new["privateKey"]),
        (new["certificate"], new["privateKey"]),
    ]
    for (before, before_key), (after, after_key) in itertools.pairwise(steps):
        assert shakes_hands(before, before_key, after, tmp_path)
        assert shakes_hands(after, after_key, before, tmp_path)
    assert not shakes_hands(new["certificate"], new["privateKey"], old["certificate"], tmp_path), "which one update in one step would be"
