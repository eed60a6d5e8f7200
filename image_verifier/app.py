"""The webhook: one AdmissionReview in, one out."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from aiohttp import web

from image_verifier.access import Logins, authorities
from image_verifier.registry import DeniedError, Reference, Registries, RegistryError
from image_verifier.settings import Settings
from image_verifier.signatures import PublicKey, is_signed

log = logging.getLogger("image_verifier")
_KINDS = ("initContainers", "containers", "ephemeralContainers")
_CACHED = 10_000
"""A digest that was signed once stays signed; a process forgets all of them when it has seen so many."""


class Verifier:
    """State of one process."""

    def __init__(self, settings: Settings, keys: list[PublicKey]) -> None:
        """Raises AccessError."""
        self.settings = settings
        self.keys = keys
        self._logins = Logins(settings.registry_auth_file)
        self._logins.read()
        self._authorities = authorities(settings.ca_file)
        self._signed: set[str] = set()
        self._registries: Registries | None = None

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/validate", self.validate)
        app.router.add_get("/health", self.health)
        app.cleanup_ctx.append(self._run)
        return app

    async def _run(self, _: web.Application) -> AsyncIterator[None]:
        connector = aiohttp.TCPConnector(ssl=self._authorities)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=self.settings.timeout_s)) as session:
            self._registries = Registries(session, self.settings.mirror, self._logins)
            yield

    async def health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def validate(self, request: web.Request) -> web.Response:
        review = await request.json()
        asked = review["request"]
        problems = await self.problems(asked["object"])
        response: dict[str, Any] = {"uid": asked["uid"], "allowed": not problems}
        if problems:
            name = asked["object"].get("metadata", {}).get("name") or asked["object"].get("metadata", {}).get("generateName", "")
            log.info("refused pod %s/%s: %s", asked.get("namespace"), name, "; ".join(problems))
            response["status"] = {"code": 403, "message": "\n".join(problems)}
        return web.json_response({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})

    async def problems(self, pod: dict[str, Any]) -> list[str]:
        """One line for every image that may not run."""
        spec = pod.get("spec", {})
        images = [
            (f"spec.{kind}[{index}].image", str(container.get("image", "")))
            for kind in _KINDS
            for index, container in enumerate(spec.get(kind) or [])
        ]
        found = await asyncio.gather(*(self._problem(path, image) for path, image in images))
        return [line for line in found if line]

    async def _problem(self, path: str, image: str) -> str | None:
        try:
            reference = Reference.parse(image)
        except ValueError:
            return f"{path}: got {image!r}, want an image by digest, since a tag can move; write repository@sha256:…"
        if image in self._signed:
            return None
        assert self._registries is not None  # noqa: S101 (set while the application runs)
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                signed = await is_signed(self._registries, reference, self.keys)
        except DeniedError as error:
            return f"{path}: got {image}, which {error}, {error.remedy}"
        except (RegistryError, TimeoutError) as error:
            return f"{path}: got {image}, whose signature cannot be read ({error or 'timeout'}), want a registry that answers; try again"
        if not signed:
            return f"{path}: got {image}, want a signature by a key of images.trust; run cosign sign --key KEY {image}"
        if len(self._signed) >= _CACHED:
            self._signed.clear()
        self._signed.add(image)
        return None
