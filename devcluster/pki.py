"""Certificates, keys and kubeconfigs. Made once a cluster; a cluster's life is shorter than their ten years."""

import base64
import datetime
import ipaddress
import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from devcluster.layout import CLUSTER_DOMAIN, SERVICE_API, Cluster

_VALID = datetime.timedelta(days=3650)
_Key = ec.EllipticCurvePrivateKey


def _write(path: Path, data: bytes, mode: int = 0o600) -> None:
    fresh = path.with_name(f".{path.name}.partial")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(data)
    fresh.replace(path)


def _pem(key: _Key | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _name(common_name: str, organization: str | None) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if organization is not None:
        attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(attributes)


class Authority:
    """A self-signed certificate authority in `directory`/NAME.{crt,key}."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        self.certificate_path = directory / f"{name}.crt"
        key_path = directory / f"{name}.key"
        if not (self.certificate_path.exists() and key_path.exists()):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            key = ec.generate_private_key(ec.SECP256R1())
            subject = _name(name, None)
            usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
            certificate = _builder(subject, subject, key).add_extension(x509.BasicConstraints(True, None), True).add_extension(usage, True)
            _write(key_path, _pem(key))
            _write(self.certificate_path, certificate.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM), 0o644)
        loaded = serialization.load_pem_private_key(key_path.read_bytes(), None)
        if not isinstance(loaded, _Key):
            raise TypeError(f"{key_path}: got {type(loaded).__name__}, want an EC key; remove the cluster with down")
        self._key = loaded
        self._certificate = x509.load_pem_x509_certificate(self.certificate_path.read_bytes())

    def issue(self, file: str, common_name: str, organization: str | None = None, names: Sequence[str] = ()) -> tuple[Path, Path]:
        """A certificate for client use, and for server use when `names` (DNS names or addresses) are given."""
        certificate_path, key_path = self.directory / f"{file}.crt", self.directory / f"{file}.key"
        if certificate_path.exists() and key_path.exists():
            return certificate_path, key_path
        key = ec.generate_private_key(ec.SECP256R1())
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if names else [])]
        builder = _builder(_name(common_name, organization), self._certificate.subject, key)
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), False)
        # Python 3.13 (Debian 13) refuses certificates that do not say which key signed them (RFC 5280, 4.2.1.1).
        builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), False)
        _write(key_path, _pem(key))
        _write(certificate_path, builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM), 0o644)
        return certificate_path, key_path


def _builder(subject: x509.Name, issuer: x509.Name, key: _Key) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + _VALID)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _kubeconfig(cluster: Cluster, ca: Path, user: str, certificate: Path, key: Path, path: Path) -> Path:
    """A self-contained kubeconfig: it works wherever it is copied to on this machine."""
    if path.exists():
        return path

    def inline(file: Path) -> str:
        return base64.b64encode(file.read_bytes()).decode()

    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": cluster.name, "cluster": {"server": cluster.api_url, "certificate-authority-data": inline(ca)}}],
        "users": [{"name": user, "user": {"client-certificate-data": inline(certificate), "client-key-data": inline(key)}}],
        "contexts": [{"name": cluster.context, "context": {"cluster": cluster.name, "user": user}}],
        "current-context": cluster.context,
    }
    _write(path, yaml.safe_dump(document, sort_keys=False).encode())
    return path


def ensure(cluster: Cluster) -> None:
    """Make every file of the PKI that is not there yet."""
    ca = Authority(cluster.pki_dir, "ca")
    front = Authority(cluster.pki_dir, "front-proxy-ca")
    etcd = Authority(cluster.pki_dir, "etcd-ca")
    service_names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", f"kubernetes.default.svc.{CLUSTER_DOMAIN}"]
    ca.issue("apiserver", "kube-apiserver", names=[*service_names, SERVICE_API, "127.0.0.1", cluster.control_plane.address])
    ca.issue("apiserver-kubelet-client", "modelfleet:apiserver-kubelet-client")
    front.issue("front-proxy-client", "front-proxy-client")
    etcd.issue("etcd", "etcd", names=["127.0.0.1", "localhost"])
    etcd.issue("etcd-client", "kube-apiserver")
    users = {
        "admin": ("kubernetes-admin", "system:masters"),
        "kube-controller-manager": ("system:kube-controller-manager", None),
        "kube-scheduler": ("system:kube-scheduler", None),
        "kube-proxy": ("system:kube-proxy", None),
        "kube-router": ("modelfleet:kube-router", None),
        "local-path": ("modelfleet:local-path", None),
    } | {f"kubelet-{node.name}": (f"system:node:{node.name}", "system:nodes") for node in cluster.nodes}
    cluster.config_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    for file, (user, group) in users.items():
        certificate, key = ca.issue(file, user, group)
        target = cluster.kubeconfig if file == "admin" else cluster.config_dir / f"{file}.kubeconfig"
        _kubeconfig(cluster, ca.certificate_path, user, certificate, key, target)
    for node in cluster.nodes:
        ca.issue(f"kubelet-{node.name}-serving", f"system:node:{node.name}", "system:nodes", names=[node.name, node.address])
    _service_account_key(cluster)
    _secret_encryption(cluster)


def _service_account_key(cluster: Cluster) -> None:
    key_path, public_path = cluster.pki_dir / "sa.key", cluster.pki_dir / "sa.pub"
    if public_path.exists():
        return
    key = rsa.generate_private_key(65537, 2048)
    _write(key_path, _pem(key))
    _write(public_path, key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))


def _secret_encryption(cluster: Cluster) -> None:
    """Secrets are not in plaintext in etcd's files either."""
    path = cluster.pki_dir / "encryption.json"
    if path.exists():
        return
    key = base64.b64encode(secrets.token_bytes(32)).decode()
    provider = {"secretbox": {"keys": [{"name": "key1", "secret": key}]}}
    document = {
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "EncryptionConfiguration",
        "resources": [{"resources": ["secrets"], "providers": [provider, {"identity": {}}]}],
    }
    _write(path, json.dumps(document).encode())
