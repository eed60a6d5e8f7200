"""The image verifier's certificate.

python -m infra.preparation.certificates NAMESPACE | pulumi config set --secret verifierTls
"""

import argparse
import datetime
import json
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from infra.program.settings.cluster import verifier_namespace

_LIFETIME = datetime.timedelta(days=3650)


def verifier_tls(namespace: str) -> str:
    """JSON with `certificate` and `privateKey` in PEM for the verifier of that fleet; self-signed, so it is its own authority."""
    host = f"image-verifier.{verifier_namespace(namespace)}.svc"
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return json.dumps({"certificate": certificate.public_bytes(serialization.Encoding.PEM).decode(), "privateKey": private.decode()})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m infra.preparation.certificates", description=__doc__)
    parser.add_argument("namespace", help="cluster.namespace of the stack")
    print(verifier_tls(parser.parse_args(arguments).namespace))


if __name__ == "__main__":
    main()
