"""What the API server asks: an AdmissionReview of a pod, as far as it names images. Source: Kubernetes' admission.k8s.io/v1 and v1 Pod."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel


class ReviewError(Exception):
    """This is no review of a pod; the message says what is missing."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, alias_generator=to_camel)


class _Container(_Part):
    image: str = ""


class _ImageVolume(_Part):
    reference: str = ""


class _Volume(_Part):
    image: _ImageVolume | None = None


class _Spec(_Part):
    init_containers: list[_Container] | None = None
    containers: list[_Container] | None = None
    ephemeral_containers: list[_Container] | None = None
    volumes: list[_Volume] | None = None


class _Metadata(_Part):
    name: str | None = None
    generate_name: str | None = None
    deletion_timestamp: str | None = None


class Pod(_Part):
    metadata: _Metadata = _Metadata()
    spec: _Spec = _Spec()

    def images(self) -> dict[str, str]:
        """Path of each field that names an image, to the image: what a container runs, and what a volume brings."""
        spec = self.spec
        kinds = {"initContainers": spec.init_containers, "containers": spec.containers, "ephemeralContainers": spec.ephemeral_containers}
        found = {f"spec.{kind}[{index}].image": each.image for kind, all_ in kinds.items() for index, each in enumerate(all_ or [])}
        volumes = {f"spec.volumes[{index}].image.reference": each.image for index, each in enumerate(spec.volumes or [])}
        return found | {path: image.reference for path, image in volumes.items() if image is not None}


class Request(_Part):
    uid: str = Field(min_length=1)
    namespace: str = ""
    operation: Literal["CREATE", "UPDATE", "DELETE", "CONNECT"] = "CREATE"
    pod: Pod = Field(alias="object")
    old_pod: Pod | None = Field(default=None, alias="oldObject")

    def new_images(self) -> dict[str, str]:
        """Those that this request brings into the namespace. A label or a finalizer of a pod that is there brings none, and neither does
        whatever happens to a pod that is on its way out."""
        if self.operation != "UPDATE" or self.old_pod is None:
            return self.pod.images()
        if self.old_pod.metadata.deletion_timestamp:
            return {}
        known = set(self.old_pod.images().values())
        return {path: image for path, image in self.pod.images().items() if image not in known}

    def debugs(self) -> bool:
        """Whether it gives a pod that runs a further, ephemeral container."""
        before = self.old_pod.spec.ephemeral_containers if self.old_pod is not None else None
        return len(self.pod.spec.ephemeral_containers or []) > len(before or [])

    def name(self) -> str:
        return f"{self.namespace}/{self.pod.metadata.name or self.pod.metadata.generate_name or ''}"

    def answer(self, problems: list[str]) -> dict[str, Any]:
        """The AdmissionReview that allows the pod, or refuses it for these problems."""
        response: dict[str, Any] = {"uid": self.uid, "allowed": not problems}
        if problems:
            response["status"] = {"code": 403, "message": "\n".join(problems)}
        return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}


class _Review(_Part):
    request: Request


def parse(content: bytes) -> Request:
    """Raises ReviewError."""
    try:
        return _Review.model_validate_json(content).request
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise ReviewError(f"{where}: got {first['msg'].lower()}, want an AdmissionReview of a pod; correct the webhook") from None
