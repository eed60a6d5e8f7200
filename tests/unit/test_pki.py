"""Certificates of a cluster."""

import datetime
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
