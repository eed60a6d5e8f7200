"""Where each container image comes from."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pulumi

from components.contract import type_token

ROOT = Path(__file__).resolve().parent.parent
CONTEXTS: Mapping[str, Sequence[str]] = {
    "cuda-base": ("images/cuda-base",),
    "python-base": ("images/python-base",),
    "ollama": ("images/ollama",),
    "model-sync": ("images/model-sync", "model_sync"),
    "models": ("images/models", "model_sync"),
    "model-server": ("images/model-server", "model_server"),
    "cache-server": ("images/cache-server",),
    "api-server": ("images/api-server", "api_server"),
    "metrics-exporter": ("images/metrics-exporter", "metrics_exporter"),
    "ollama-agent": ("images/ollama-agent", "ollama_agent"),
    "image-verifier": ("images/image-verifier", "image_verifier"),
}
"""Image name to the paths that its Dockerfile copies from; their content names the tag."""
_EPOCH = "1764000000"
"""Time of every file of a built image, in seconds since 1970: a constant, so that the same sources give the same digest."""


@dataclass(frozen=True, kw_only=True)
class RuntimeImagesArgs:
    """Inputs of RuntimeImages."""

    builder: str
    """`prebuilt`: take `refs`. `docker-build`: buildx through pulumi-docker-build. `docker`: a Docker daemon through pulumi-docker."""
    registry: str
    """Prefix of the repositories that are pushed to."""
    refs: Mapping[str, str] = field(default_factory=dict)
    """Image name to `repository@sha256:…`."""
    images: Sequence[str] | None = None
    """Which images; all that can be built, or all of `refs`, when None."""
    platform: str = "linux/amd64"
    builder_name: str | None = None
    build: bool = True
    """False where nothing may be built (rendering): the tag that a build would push is named instead of its digest."""


class RuntimeImages(pulumi.ComponentResource):
    """One reference for each image; by digest once it exists. Consumers never see a mutable tag of a real deployment.

    For example:

        images = RuntimeImages("images", RuntimeImagesArgs(builder="docker-build", registry="registry.example.com/fleet",
                                                           builder_name="remote", images=["python-base", "cuda-base"]))
        pulumi.export("python_base", images.refs["python-base"])
    """

    refs: Mapping[str, pulumi.Output[str]]

    def __init__(self, name: str, args: RuntimeImagesArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(type_token("RuntimeImages"), name, {}, opts)
        every = args.refs if args.builder == "prebuilt" else CONTEXTS
        self.refs = {image: self._reference(name, image, args) for image in (args.images or every)}
        self.register_outputs({"refs": dict(self.refs)})

    def _reference(self, name: str, image: str, args: RuntimeImagesArgs) -> pulumi.Output[str]:
        if args.builder == "prebuilt":
            return pulumi.Output.from_input(args.refs[image])
        tag = f"{args.registry}/{image}:{content_tag(image)}"
        if not args.build:
            return pulumi.Output.from_input(tag)
        dockerfile = str(ROOT / "images" / image / "Dockerfile")
        child = pulumi.ResourceOptions(parent=self, retain_on_delete=True)
        if args.builder == "docker-build":
            import pulumi_docker_build as docker_build  # noqa: PLC0415 (a second to import, and not installed by every user)

            built = docker_build.Image(
                f"{name}-{image}",
                tags=[tag],
                # Not `push=True`, which would add a second export that keeps the build's own file times.
                push=False,
                exports=[docker_build.ExportArgs(raw="type=registry,rewrite-timestamp=true")],
                build_args={"SOURCE_DATE_EPOCH": _EPOCH},
                # A preview must not need a builder.
                build_on_preview=False,
                context=docker_build.BuildContextArgs(location=str(ROOT)),
                dockerfile=docker_build.DockerfileArgs(location=dockerfile),
                platforms=[docker_build.Platform(args.platform)],
                builder=docker_build.BuilderConfigArgs(name=args.builder_name) if args.builder_name else None,
                opts=child,
            )
            return built.ref
        import pulumi_docker as docker  # noqa: PLC0415

        build = docker.DockerBuildArgs(context=str(ROOT), dockerfile=dockerfile, platform=args.platform)
        return docker.Image(f"{name}-{image}", image_name=tag, build=build, opts=child).repo_digest


def content_tag(image: str) -> str:
    """`src-` and twelve hex digits of everything that the image's build copies from the repository."""
    digest = hashlib.sha256()
    for context in CONTEXTS[image]:
        for path in sorted((ROOT / context).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return f"src-{digest.hexdigest()[:12]}"
