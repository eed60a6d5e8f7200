"""cosign's signatures: an OCI manifest under the tag `sha256-<digest>.sig`, one layer a signature.

A layer's content is the signed payload, its annotation the signature. Source: sigstore/cosign, specs/SIGNATURE_SPEC.md.
"""

import base64
import binascii
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from image_verifier.registry import Reference, Registries

_ANNOTATION = "dev.cosignproject.cosign/signature"
_PAYLOAD_TYPE = "cosign container image signature"
_MAX_SIGNATURES = 32

PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


class KeysError(Exception):
    """The file holds no usable public keys."""


def read_keys(path: Path) -> list[PublicKey]:
    """Every public key of a PEM file. Raises KeysError."""
    try:
        blocks = re.findall(rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", path.read_bytes(), re.DOTALL)
        keys = [serialization.load_pem_public_key(block) for block in blocks]
    except (OSError, ValueError) as error:
        raise KeysError(f"{path}: got {error}, want public keys in PEM; mount what cosign generate-key-pair wrote as cosign.pub") from None
    usable = [key for key in keys if isinstance(key, PublicKey)]
    if not usable or len(usable) != len(keys):
        raise KeysError(f"{path}: got {len(keys)} keys, want one or more of type ECDSA or Ed25519; make one with cosign generate-key-pair")
    return usable


def signature_tag(digest: str) -> str:
    return f"{digest.replace(':', '-')}.sig"


async def is_signed(registries: Registries, image: Reference, keys: list[PublicKey]) -> bool:
    """Whether one of `keys` signed this very digest. Raises RegistryError when the registry cannot say."""
    manifest = await registries.manifest(image, signature_tag(image.digest))
    if manifest is None:
        return False
    for layer in _layers(manifest)[:_MAX_SIGNATURES]:
        payload = await registries.blob(image, layer["digest"])
        if payload is None or f"sha256:{hashlib.sha256(payload).hexdigest()}" != layer["digest"]:
            continue
        signature = _decoded(layer.get("annotations", {}).get(_ANNOTATION, ""))
        if _names(payload, image.digest) and any(_verifies(key, signature, payload) for key in keys):
            return True
    return False


def _layers(manifest: bytes) -> list[dict[str, Any]]:
    try:
        return [layer for layer in json.loads(manifest)["layers"] if isinstance(layer.get("digest"), str)]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _names(payload: bytes, digest: str) -> bool:
    """Whether the payload speaks of this image: a true signature of another image must not count."""
    try:
        critical = json.loads(payload)["critical"]
        return critical["type"] == _PAYLOAD_TYPE and critical["image"]["docker-manifest-digest"] == digest
    except (ValueError, KeyError, TypeError):
        return False


def _verifies(key: PublicKey, signature: bytes, payload: bytes) -> bool:
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, payload)
        else:
            key.verify(signature, payload, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True
