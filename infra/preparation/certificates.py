"""Certificates that the program itself makes, as secrets of a stack: the image verifier's, and the API server's with its authority.

python -m infra.preparation.certificates NAMESPACE | pulumi config set --secret verifierTls
python -m infra.preparation.certificates NAMESPACE --api-server NAME… | pulumi config set --secret apiServerTls
"""

import argparse
import datetime
import ipaddress
import json
import os
import sys
from collections.abc import Mapping, Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from infra.program.settings.cluster import verifier_namespace
from infra.program.settings.tls import LOCAL_NAMES, service_names

_LIFETIME = datetime.timedelta(days=3650)
_LEAF_LIFETIME = datetime.timedelta(days=397)
"""Of what an authority signs for servers: some clients believe no longer ones, also of authorities of one's own (Apple's HT210176: 825)."""
_RENEWED_BEFORE = _LEAF_LIFETIME / 3
_BACKDATED = datetime.timedelta(hours=1)
_USAGES = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign", "crl_sign")


def verifier_tls(namespace: str) -> str:
    """JSON with `certificate` and `privateKey` in PEM for the verifier of that fleet; self-signed, so it is its own authority."""
    host = f"image-verifier.{verifier_namespace(namespace)}.svc"
    key = ec.generate_private_key(ec.SECP256R1())
    name = _named(host)
    certificate = (
        _begun(name, name, key.public_key(), _LIFETIME)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        # The next one has the same name: by these a client tells one from the other while it trusts both.
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return json.dumps({"certificate": _pem(certificate), "privateKey": _key_pem(key)})


def api_server_tls(names: Sequence[str], before: Mapping[str, str] | None = None) -> dict[str, str]:
    """`certificate` and `privateKey` for the names and addresses, and `authority` and `authorityKey` which signed it, all in PEM.

    What was made `before` stays as it is while it has the names and a third of its time. Then the same authority signs another one, so that
    clients go on to trust it; a new authority comes when the old one would end first.
    """
    if before and _is_good(before["certificate"], names):
        return dict(before)
    if before and _until(before["authority"]) > _now() + _LEAF_LIFETIME:
        authority, authority_key = before["authority"], before["authorityKey"]
    else:
        authority, authority_key = _authority()
    certificate, key = _signed(names, authority, authority_key)
    return {"certificate": certificate, "privateKey": key, "authority": authority, "authorityKey": authority_key}


def _authority() -> tuple[str, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    # Several of them may be in one file of somebody who uses several fleets.
    name = _named(f"modelfleet authority {os.urandom(4).hex()}")
    certificate = (
        _begun(name, name, key.public_key(), _LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pem(certificate), _key_pem(key)


def _signed(names: Sequence[str], authority: str, authority_key: str) -> tuple[str, str]:
    key, issuer = ec.generate_private_key(ec.SECP256R1()), x509.load_pem_x509_certificate(authority.encode())
    signer = serialization.load_pem_private_key(authority_key.encode(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)  # noqa: S101 (we made it)
    certificate = (
        _begun(_named(names[0]), issuer.subject, key.public_key(), _LEAF_LIFETIME)
        .add_extension(x509.SubjectAlternativeName([general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage("digital_signature"), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )
    return _pem(certificate), _key_pem(key)


def _is_good(certificate: str, names: Sequence[str]) -> bool:
    found = x509.load_pem_x509_certificate(certificate.encode())
    has = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {general_name(name) for name in names} <= set(has) and found.not_valid_after_utc > _now() + _RENEWED_BEFORE


def _begun(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, life: datetime.timedelta) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    return builder.serial_number(x509.random_serial_number()).not_valid_before(_now() - _BACKDATED).not_valid_after(_now() + life)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def general_name(name: str) -> x509.GeneralName:
    """A name or an address, as certificates have them."""
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _usage(*names: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{each: each in names for each in _USAGES}, encipher_only=False, decipher_only=False)


def _until(certificate: str) -> datetime.datetime:
    return x509.load_pem_x509_certificate(certificate.encode()).not_valid_after_utc


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m infra.preparation.certificates", description=__doc__)
    parser.add_argument("namespace", help="cluster.namespace of the stack")
    parser.add_argument("--api-server", nargs="*", metavar="NAME", help="for the API server, and for these names and addresses too")
    parser.add_argument("--renew", action="store_true", help="read what was made before from the standard input; its authority stays")
    given = parser.parse_args(arguments)
    if given.api_server is None:
        print(verifier_tls(given.namespace))
    else:
        before = json.load(sys.stdin) if given.renew else None
        names = [*service_names(given.namespace), *LOCAL_NAMES, *given.api_server]
        print(json.dumps(api_server_tls(list(dict.fromkeys(names)), before)))


if __name__ == "__main__":
    main()
