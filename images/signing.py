"""cosign's signatures for the embedded cluster's images, so that `images.trust` can be tried without cosign.

A signature is an OCI manifest under the tag `sha256-<digest>.sig`. Source: sigstore/cosign, specs/SIGNATURE_SPEC.md.
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

_PAYLOAD = "application/vnd.dev.cosign.simplesigning.v1+json"


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


def signature(image: Image, key: ec.EllipticCurvePrivateKey, work: Path) -> Image:
    """The signature of `image`, as an image that can be pushed beside it; `work` keeps the payload."""
    critical = {
        "identity": {"docker-reference": image.name},
        "image": {"docker-manifest-digest": image.digest},
        "type": "cosign container image signature",
    }
    payload = json.dumps({"critical": critical, "optional": None}, separators=(",", ":"), sort_keys=True).encode()
    path = work / f"{image.digest.partition(':')[2]}.json"
    write(path, payload.decode())
    layer = Layer(digest=f"sha256:{hashlib.sha256(payload).hexdigest()}", size=len(payload), path=path)
    signed = base64.b64encode(key.sign(payload, ec.ECDSA(hashes.SHA256()))).decode()
    config = json.dumps({"architecture": "", "os": "", "config": {}, "rootfs": {"type": "layers", "diff_ids": [layer.digest]}}).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": oci.MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": f"sha256:{hashlib.sha256(config).hexdigest()}",
            "size": len(config),
        },
        "layers": [
            {
                "mediaType": _PAYLOAD,
                "digest": layer.digest,
                "size": layer.size,
                "annotations": {"dev.cosignproject.cosign/signature": signed},
            }
        ],
    }
    return Image(name=image.name, layers=[layer], config=config, manifest=json.dumps(manifest).encode())


def sign(images: Iterable[Image], registry: str, directory: Path) -> str:
    """Push a signature for each image. Returns the public key in PEM. Raises RegistryError."""
    key, public = key_pair(directory)
    for image in images:
        oci.push(signature(image, key, directory / "payloads"), registry, f"{image.digest.replace(':', '-')}.sig")
    return public
