"""Certificates that the program itself makes, as their command prints them."""

import io
import json

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
