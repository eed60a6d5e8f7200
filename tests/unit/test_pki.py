"""Certificates of a cluster."""

import datetime
import ssl
from pathlib import Path

import pytest
from cryptography import x509

from devcluster import layout, pki


def test_a_clock_that_steps_back_leaves_certificates_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    cluster = layout.create("one", 1)
    pki.ensure(cluster)
    found = [x509.load_pem_x509_certificate(path.read_bytes()) for path in cluster.pki_dir.glob("*.crt")]
    assert found
    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=23)
    assert [each.subject for each in found if each.not_valid_before_utc > yesterday] == []


@pytest.mark.parametrize(("authority", "certificate", "name"), [("ca", "apiserver", "127.0.0.1"), ("etcd-ca", "etcd", "localhost")])
def test_certificates_pass_the_strict_check_of_newer_pythons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, authority: str, certificate: str, name: str
) -> None:
    """Python 3.13, which Debian 13 has, sets this flag by default."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    cluster = layout.create("one", 1)
    pki.ensure(cluster)
    client = ssl.create_default_context(cafile=str(cluster.pki_dir / f"{authority}.crt"))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(cluster.pki_dir / f"{certificate}.crt", cluster.pki_dir / f"{certificate}.key")
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(to_client, to_server, server_hostname=name), server.wrap_bio(to_server, to_client, server_side=True)]
    while ends:
        for end in list(ends):
            try:
                end.do_handshake()
                ends.remove(end)
            except ssl.SSLWantReadError:
                continue
