"""The section `images`: which images there are, where each comes from, and whose signatures count."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from infra.program.settings import refusals
from infra.program.settings.section import Resources, Section

IMAGE_NAMES = ("ollama", "ollama-agent", "model-sync", "models", "model-server", "cache-server", "api-server", "metrics-exporter")
PROMETHEUS_IMAGE = "prometheus"
"""The stack needs this image with monitoring.prometheus alone."""
VERIFIER_IMAGE = "image-verifier"
"""The stack needs this image with images.trust alone."""
VLLM_IMAGE = "model-server-vllm"
"""The stack needs this image with a model server of engine vllm alone."""
BUILT_FOR = "linux/amd64"
"""The platform of images that are built and name none."""
BASE_NAMES = ("cuda-base", "python-base")
"""Base images: of model-server-vllm, and for services of other teams. The stack runs none of them by itself."""
KNOWN = (*IMAGE_NAMES, *BASE_NAMES, PROMETHEUS_IMAGE, VERIFIER_IMAGE, VLLM_IMAGE)
"""Every image that there may be a reference for."""


class TrustSettings(Section):
    public_keys: str = Field(pattern=r"-----BEGIN PUBLIC KEY-----")
    """Public keys in PEM, as cosign generate-key-pair writes them; a signature by any of them counts."""
    mirror: str = Field(default="", pattern=r"^(https?://[^/\s]+)?$")
    """Registry that has the signatures of every image; empty: the one in the image's name."""
    registries: list[Annotated[str, Field(pattern=r"^[a-z0-9.-]+(:[0-9]{1,5})?$")]] = Field(default=[])
    """Hosts of registries, with a port where it is not 443, that images of the namespace may come from; empty is any. Docker Hub is
    registry-1.docker.io."""
    ca_bundle: str = ""
    """Authorities of your registries' certificates in PEM, beside the public ones, for reading signatures. Nodes have their own."""
    replicas: int = Field(default=2, ge=1, le=16)
    """Verifiers; while none answers, no pod starts."""
    resources: Resources = Resources(cpu="50m", memory="128Mi")

    @model_validator(mode="after")
    def _authorities_are_certificates(self) -> Self:
        """This is a rule of the section, not of the key: a message about the key would show its value, which may be a private key."""
        try:
            from cryptography import x509  # noqa: PLC0415 (half a second to import, and few stacks have authorities of their own)

            found = x509.load_pem_x509_certificates(self.ca_bundle.encode()) if self.ca_bundle else []
        except ValueError:
            found = []
        if self.ca_bundle and (not found or len(found) != self.ca_bundle.count("-----BEGIN ")):
            raise ValueError(
                "caBundle: got something else, want certificates in PEM; take those of the authorities that your registries have"
            )
        return self


class ImagesSettings(Section):
    builder: Literal["prebuilt", "docker-build", "docker"] = "prebuilt"
    """Take images by digest, or build them with buildx, or with a Docker daemon."""
    registry: str = Field(default="modelfleet", pattern=r"^[a-z0-9][a-z0-9._:/-]{0,199}$")
    """Prefix of every repository that is built."""
    refs: dict[str, str] = Field(default={})
    """Image name to `repository@sha256:…`, for the builder `prebuilt`."""
    builder_name: str | None = None
    """The buildx builder for `docker-build`; the default one when unset."""
    platform: Literal["linux/amd64", "linux/arm64"] | None = None
    """What a builder builds for, by default linux/amd64, and the only nodes that pods go to. Unset with builder prebuilt, pods go to nodes
    of every architecture: set it where the images are of one, and the nodes are not."""
    trust: TrustSettings | None = None
    """Refuse pods whose images carry no cosign signature by one of these keys. Builders are refused with it: sign before you deploy."""

    @property
    def architecture(self) -> str | None:
        """The one that nodes must have, by Kubernetes' name for it; None: any."""
        platform = self.platform or (None if self.builder == "prebuilt" else BUILT_FOR)
        return platform.partition("/")[2] if platform else None

    @model_validator(mode="after")
    def _refs_fit_builder(self) -> Self:
        problems: list[str] = []
        for name, ref in self.refs.items():
            if name not in KNOWN:
                known = ", ".join(KNOWN)
                problems.append(f"refs.{refusals.key(name)}: got an unknown image, want one of {known}; correct the name")
            elif not re.fullmatch(r"[^\s@]+@sha256:[0-9a-f]{64}", ref):
                problems.append(f"refs.{name}: got {ref!r}, want repository@sha256:<64 hex digits>; pin the digest")
        needed = (*IMAGE_NAMES, VERIFIER_IMAGE) if self.trust is not None else IMAGE_NAMES
        missing = [name for name in needed if name not in self.refs]
        if self.builder == "prebuilt" and missing:
            problems.append(f"refs.{missing[0]}: got nothing, want a reference for {', '.join(missing)}; add them or set images.builder")
        if self.builder != "prebuilt" and self.refs:
            problems.append(f"refs: got references, want none with builder {self.builder}; remove refs or set builder to prebuilt")
        if self.builder != "prebuilt" and self.trust is not None:
            problems.append(
                f"builder: got {self.builder} with trust, want prebuilt, since nobody would have signed what an update builds; "
                "build and sign first, as examples/workflows does"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self
