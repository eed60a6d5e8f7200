"""cosign's signatures, in both forms that it writes.

Since cosign 3 a signature is a Sigstore bundle, an artifact that refers to the image (OCI 1.1 referrers, or the index under the
tag `sha256-<digest>` where a registry has no such API): an in-toto statement in a DSSE envelope. Before, it was a manifest under
the tag `sha256-<digest>.sig`, one layer a signature: the layer's content is the signed payload, its annotation the signature.

Sources: sigstore/protobuf-specs, sigstore_bundle.proto v0.3; secure-systems-lab/dsse, protocol.md; sigstore/cosign, SIGNATURE_SPEC.md.
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

from image_verifier.registry import DIGEST, Reference, Registries

_BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PREDICATE = "https://sigstore.dev/cosign/sign/v1"
"""What a bundle states: a signature. An SBOM or a scan report of the image is a bundle, too, and no permission to run it."""
_ANNOTATION = "dev.cosignproject.cosign/signature"
_PAYLOAD_TYPE = "cosign container image signature"
_MAX_SIGNATURES = 32
NOT_WHAT_IT_SHOULD_BE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading a stranger's JSON may raise."""

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


async def is_signed(registries: Registries, image: Reference, keys: list[PublicKey]) -> bool:
    """Whether one of `keys` signed this very digest. Raises RegistryError when the registry cannot say."""
    return await _has_bundle(registries, image, keys) or await _has_payload(registries, image, keys)


async def _has_bundle(registries: Registries, image: Reference, keys: list[PublicKey]) -> bool:
    index = await registries.referrers(image)
    entries = [entry for entry in _entries(index, "manifests") if entry.get("artifactType") == _BUNDLE]
    for entry in entries[:_MAX_SIGNATURES]:
        manifest = await registries.manifest(image, entry["digest"])
        for layer in _entries(manifest, "layers")[:1]:
            bundle = await _content(registries, image, layer["digest"])
            if any(_bundle_verifies(key, bundle, image.digest) for key in keys):
                return True
    return False


async def _has_payload(registries: Registries, image: Reference, keys: list[PublicKey]) -> bool:
    manifest = await registries.manifest(image, f"{image.digest.replace(':', '-')}.sig")
    for layer in _entries(manifest, "layers")[:_MAX_SIGNATURES]:
        payload = await _content(registries, image, layer["digest"])
        annotations = layer.get("annotations")
        signature = _decoded(annotations.get(_ANNOTATION) if isinstance(annotations, dict) else None)
        if _names(payload, image.digest) and any(_verifies(key, signature, payload) for key in keys):
            return True
    return False


async def _content(registries: Registries, image: Reference, digest: str) -> bytes:
    """A blob, or nothing when it is not what its digest says."""
    blob = await registries.blob(image, digest) or b""
    return blob if f"sha256:{hashlib.sha256(blob).hexdigest()}" == digest else b""


def _entries(document: bytes | None, field: str) -> list[dict[str, Any]]:
    try:
        found = json.loads(document or b"{}").get(field) or []
        return [entry for entry in found if DIGEST.fullmatch(entry["digest"])]
    except NOT_WHAT_IT_SHOULD_BE:
        return []


def _bundle_verifies(key: PublicKey, bundle: bytes, digest: str) -> bool:
    try:
        envelope = json.loads(bundle)["dsseEnvelope"]
        kind, payload = str(envelope["payloadType"]), _decoded(envelope["payload"])
        statement = json.loads(payload)
        subjects = {f"sha256:{subject['digest']['sha256']}" for subject in statement["subject"]}
        states = statement["predicateType"] == _PREDICATE and digest in subjects
        signatures = [_decoded(entry["sig"]) for entry in envelope["signatures"]]
    except NOT_WHAT_IT_SHOULD_BE:
        return False
    # The DSSE pre-authentication encoding: what is signed is type and payload, each after its length.
    signed = f"DSSEv1 {len(kind.encode())} {kind} {len(payload)} ".encode() + payload
    return states and any(_verifies(key, signature, signed) for signature in signatures)


def _decoded(text: Any) -> bytes:
    """Base64; nothing of what is none."""
    if not isinstance(text, str):
        return b""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _names(payload: bytes, digest: str) -> bool:
    """Whether the payload speaks of this image: a true signature of another image must not count."""
    try:
        critical = json.loads(payload)["critical"]
        return critical["type"] == _PAYLOAD_TYPE and critical["image"]["docker-manifest-digest"] == digest
    except NOT_WHAT_IT_SHOULD_BE:
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
