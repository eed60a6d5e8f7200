"""cosign's signatures for the embedded cluster's images, so that `images.trust` can be tried without cosign.

A signature is a Sigstore bundle that refers to the image, listed in the index under the tag `sha256-<digest>`, where clients look
in a registry without the referrers API. Sources: sigstore/protobuf-specs, sigstore_bundle.proto v0.3; OCI distribution 1.1.
"""

import base64
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from devcluster import oci
from devcluster.layout import write
from devcluster.oci import Image, Layer

_BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_STATEMENT = "application/vnd.in-toto+json"
_EMPTY = b"{}"


def key_pair(directory: Path) -> tuple[ec.EllipticCurvePrivateKey, str]:
    """The signing key of `directory`, made when there is none, and its public half in PEM."""
    path = directory / "image-signing.key"
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
        fresh = ec.generate_private_key(ec.SECP256R1())
        path.write_bytes(fresh.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)  # noqa: S101 (nothing else is written there)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return key, public.decode()


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _bundle(image: Image, key: ec.EllipticCurvePrivateKey) -> str:
    subject = {"digest": {"sha256": image.digest.partition(":")[2]}}
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [subject],
        "predicateType": "https://sigstore.dev/cosign/sign/v1",
        "predicate": {},
    }
    payload = json.dumps(statement, separators=(",", ":")).encode()
    signature = key.sign(f"DSSEv1 {len(_STATEMENT)} {_STATEMENT} {len(payload)} ".encode() + payload, ec.ECDSA(hashes.SHA256()))
    public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": _STATEMENT,
        "signatures": [{"sig": base64.b64encode(signature).decode()}],
    }
    hint = base64.b64encode(hashlib.sha256(public).digest()).decode()
    return json.dumps({"mediaType": _BUNDLE, "verificationMaterial": {"publicKey": {"hint": hint}}, "dsseEnvelope": envelope})


def _artifact(image: Image, key: ec.EllipticCurvePrivateKey, work: Path) -> Image:
    """The signature of `image` as an artifact that can be pushed beside it; `work` keeps the bundle."""
    bundle = _bundle(image, key)
    path = work / f"{image.digest.partition(':')[2]}.json"
    write(path, bundle)
    layer = Layer(digest=_digest(bundle.encode()), size=len(bundle), path=path)
    manifest = {
        "schemaVersion": 2,
        "mediaType": oci.MANIFEST,
        "artifactType": _BUNDLE,
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": _digest(_EMPTY), "size": len(_EMPTY)},
        "layers": [{"mediaType": _BUNDLE, "digest": layer.digest, "size": layer.size}],
        "subject": {"mediaType": oci.MANIFEST, "digest": image.digest, "size": len(image.manifest)},
        "annotations": {
            "dev.sigstore.bundle.content": "dsse-envelope",
            "dev.sigstore.bundle.predicateType": "https://sigstore.dev/cosign/sign/v1",
        },
    }
    return Image(name=image.name, layers=[layer], config=_EMPTY, manifest=json.dumps(manifest).encode())


def sign(images: Iterable[Image], registry: str, directory: Path) -> str:
    """Push a signature for each image that has none. Returns the public key in PEM. Raises RegistryError."""
    key, public = key_pair(directory)
    for image in images:
        tag = image.digest.replace(":", "-")
        if oci.has_tag(image.name, registry, tag):
            continue
        artifact = _artifact(image, key, directory / "bundles")
        oci.push(artifact, registry, artifact.digest)
        entry = {"mediaType": oci.MANIFEST, "size": len(artifact.manifest), "digest": artifact.digest, "artifactType": _BUNDLE}
        index = json.dumps({"schemaVersion": 2, "mediaType": oci.INDEX, "manifests": [entry]}).encode()
        oci.push_manifest(image.name, registry, tag, index, oci.INDEX)
    return public
