"""Where each container image comes from."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pulumi

from .contract import type_token
from .registry_auth import Login, login_for, logins

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
    "prometheus": ("images/prometheus",),
    "image-verifier": ("images/image-verifier", "image_verifier"),
    "model-server-vllm": ("images/model-server-vllm", "model_server"),
}
"""Image name to the paths below RuntimeImagesArgs.source that its Dockerfile copies from; their content names the tag."""
BASES: Mapping[str, str] = {"python-base": "cuda-base", "model-server-vllm": "python-base"}
"""Image name to the image that it stands on: the argument BASE of its build, by digest. All others stand on images of others."""
_EPOCH = "1764000000"
"""Time of every file of a built image, in seconds since 1970: a constant, so that the same sources give the same digest."""


@dataclass(frozen=True, kw_only=True)
class RuntimeImagesArgs:
    """Inputs of RuntimeImages."""

    builder: Literal["prebuilt", "docker-build", "docker"] = "prebuilt"
    """`prebuilt`: take `refs`. `docker-build`: buildx through pulumi-docker-build. `docker`: a Docker daemon through pulumi-docker."""
    registry: str = ""
    """Prefix of the repositories that a builder pushes to."""
    source: Path | str | None = None
    """What a builder builds from: a checkout of the modelfleet repository. `prebuilt` needs none."""
    refs: Mapping[str, str] = field(default_factory=dict)
    """Image name to `repository@sha256:…`."""
    images: Sequence[str] | None = None
    """Which images; all that can be built, or all of `refs`, when None."""
    platform: str = "linux/amd64"
    builder_name: str | None = None
    build: bool = True
    """False where nothing may be built (rendering): the tag that a build would push is named instead of its digest."""
    registry_auth: pulumi.Input[str] | None = None
    """dockerconfigjson with the builders' logins; None: those of your own Docker configuration."""


class RuntimeImages(pulumi.ComponentResource):
    """One reference for each image; by digest once it exists. Consumers never see a mutable tag of a real deployment.

    For example:

        digest = "sha256:" + 64 * "0"
        images = RuntimeImages("images", RuntimeImagesArgs(builder="prebuilt",
                                                           refs={"cache-server": f"registry.example.com/cache-server@{digest}"}))
        pulumi.export("cache_server", images.refs["cache-server"])

    To build them instead, pass `builder="docker-build"`, the `registry`, and a checkout of the repository as `source`.
    """

    refs: Mapping[str, pulumi.Output[str]]

    def __init__(self, name: str, args: RuntimeImagesArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(type_token("RuntimeImages"), name, {}, opts)
        every = args.refs if args.builder == "prebuilt" else CONTEXTS
        self._made: dict[str, pulumi.Output[str]] = {}
        self.refs = {image: self._reference(name, image, args) for image in (args.images or every)}
        self.register_outputs({"refs": dict(self.refs)})

    def _reference(self, name: str, image: str, args: RuntimeImagesArgs) -> pulumi.Output[str]:
        """Each is made once, however many stand on it."""
        if image not in self._made:
            self._made[image] = self._make(name, image, args)
        return self._made[image]

    def _make(self, name: str, image: str, args: RuntimeImagesArgs) -> pulumi.Output[str]:
        if args.builder == "prebuilt":
            if image not in args.refs:
                raise pulumi.RunError(f"{name}: got no reference for {image}, want repository@sha256:…; add it to refs")
            return pulumi.Output.from_input(args.refs[image])
        if args.source is None or not args.registry:
            got = f"source={args.source!s}, registry={args.registry!r}"
            raise pulumi.RunError(
                f"{name}: got {got} with builder={args.builder}, want both; pass a checkout of the repository and a registry"
            )
        source = Path(args.source).resolve()
        tag = f"{args.registry}/{image}:{content_tag(source, image)}"
        if not args.build:
            return pulumi.Output.from_input(tag)
        dockerfile = str(source / "images" / image / "Dockerfile")
        base = {"BASE": self._reference(name, BASES[image], args)} if image in BASES else {}
        child = pulumi.ResourceOptions(parent=self, retain_on_delete=True)
        if args.builder == "docker-build":
            import pulumi_docker_build as docker_build  # noqa: PLC0415 (a second to import, and not installed by every user)

            built = docker_build.Image(
                f"{name}-{image}",
                tags=[tag],
                # Not `push=True`, which would add a second export that keeps the build's own file times.
                push=False,
                exports=[docker_build.ExportArgs(raw="type=registry,rewrite-timestamp=true")],
                build_args={"SOURCE_DATE_EPOCH": _EPOCH, **base},
                # A preview must not need a builder.
                build_on_preview=False,
                context=docker_build.BuildContextArgs(location=str(source)),
                dockerfile=docker_build.DockerfileArgs(location=dockerfile),
                platforms=[docker_build.Platform(args.platform)],
                builder=docker_build.BuilderConfigArgs(name=args.builder_name) if args.builder_name else None,
                registries=_from(args.registry_auth, lambda found: [_registry(each) for each in found]),
                opts=child,
            )
            return built.ref
        import pulumi_docker as docker  # noqa: PLC0415

        build = docker.DockerBuildArgs(context=str(source), dockerfile=dockerfile, platform=args.platform, args=base or None)
        login = _from(args.registry_auth, lambda found: _server(login_for(args.registry, found)))
        return docker.Image(f"{name}-{image}", image_name=tag, build=build, registry=login, opts=child).repo_digest


def _from(auth: pulumi.Input[str] | None, made: Callable[[list[Login]], Any]) -> pulumi.Output[Any] | None:
    """What `made` makes of the logins, a secret like them."""
    return None if auth is None else pulumi.Output.secret(auth).apply(lambda text: made(logins(text)))


def _registry(login: Login) -> dict[str, str]:
    return {"address": login.host, "username": login.username, "password": login.password}


def _server(login: Login | None) -> dict[str, str] | None:
    return None if login is None else {"server": login.host, "username": login.username, "password": login.password}


def content_tag(source: Path, image: str) -> str:
    """`src-` and twelve hex digits of everything that the image's build copies from `source`, and of what it stands on."""
    digest = hashlib.sha256(content_tag(source, BASES[image]).encode() if image in BASES else b"")
    for context in CONTEXTS[image]:
        found = sorted((source / context).rglob("*"))
        if not found:
            raise pulumi.RunError(f"source: got {source} without {context}, want a checkout of the modelfleet repository; correct the path")
        for path in found:
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(source)}\0".encode() + path.read_bytes())
    return f"src-{digest.hexdigest()[:12]}"
