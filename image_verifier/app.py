"""The webhook: one AdmissionReview in, one out."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web

from image_verifier.access import Logins, authorities
from image_verifier.registry import DeniedError, Reference, Registries, RegistryError
from image_verifier.review import Request, ReviewError, parse
from image_verifier.settings import Settings
from image_verifier.signatures import PublicKey, is_signed

log = logging.getLogger("image_verifier")
_REMEMBERED = 10_000
"""Images that were found signed; a process forgets all of them when it has seen so many."""
_REVIEW_BYTES = 8 << 20
"""An update has the pod twice, and etcd takes objects of 1.5 MiB."""
_LOOKUPS = 8
"""Images that are looked up at the same time, of all pods together: each may have a body in memory."""


class Verifier:
    """State of one process."""

    def __init__(self, settings: Settings, keys: list[PublicKey]) -> None:
        """Raises AccessError."""
        self.settings = settings
        self.keys = keys
        self._logins = Logins(settings.registry_auth_file)
        self._logins.read()
        self._authorities = authorities(settings.ca_file)
        self._registries: Registries | None = None
        self._signed: dict[str, float] = {}
        """Image to when it was found signed."""
        self._places = asyncio.Semaphore(_LOOKUPS)

    def app(self) -> web.Application:
        app = web.Application(client_max_size=_REVIEW_BYTES)
        app.router.add_post("/validate", self.validate)
        app.router.add_get("/health", self.health)
        app.cleanup_ctx.append(self._run)
        return app

    async def _run(self, _: web.Application) -> AsyncIterator[None]:
        connector = aiohttp.TCPConnector(ssl=self._authorities)
        timeout = aiohttp.ClientTimeout(total=self.settings.timeout_s)
        # What is compressed may be small on its way and large here: none is asked for, and none is unpacked.
        plain = {"Accept-Encoding": "identity"}
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=plain, auto_decompress=False) as session:
            self._registries = Registries(session, self.settings.mirror, self._logins)
            yield

    async def health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def validate(self, request: web.Request) -> web.Response:
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                body = await request.read()
            asked = parse(body)
        except TimeoutError:
            text = f"review: got no end of it within {self.settings.timeout_s:g} s, want it sooner; send it in one piece\n"
            return web.Response(text=text, status=408, headers={"Connection": "close"})
        except ReviewError as error:
            return web.Response(text=f"{error}\n", status=400)
        problems = await self._problems(asked)
        if problems:
            log.info("refused pod %s: %s", asked.name(), "; ".join(problems))
        else:
            log.debug("let pod %s in", asked.name())
        return web.json_response(asked.answer(problems))

    async def _problems(self, asked: Request) -> list[str]:
        """One line for every image that may not run, or one for a container that may not be, whatever its image is."""
        if asked.debugs() and not self.settings.debug_containers:
            return ["spec.ephemeralContainers: got another one in production, want none; look at logs, metrics and make explain"]
        deadline = asyncio.get_running_loop().time() + self.settings.timeout_s
        found = await asyncio.gather(*(self._problem(path, image, deadline) for path, image in asked.new_images().items()))
        return [line for line in found if line]

    async def _problem(self, path: str, image: str, deadline: float) -> str | None:
        try:
            reference = Reference.parse(image)
        except ValueError:
            return f"{path}: got {image!r}, want an image by digest, since a tag can move; write repository@sha256:…"
        allowed = self.settings.allowed
        if allowed and reference.host not in allowed:
            return f"{path}: got {image}, want an image of {', '.join(allowed)}; push it there, or allow its registry in images.trust"
        if time.monotonic() - self._signed.get(image, -math.inf) < self.settings.trust_s:
            return None
        found = await self._unsigned(reference, image, deadline)
        return f"{path}: got {image}, {found}" if found else None

    async def _unsigned(self, reference: Reference, image: str, deadline: float) -> str | None:
        """What is wrong with its signature, what is wanted, and what to do; None when it is signed."""
        assert self._registries is not None  # noqa: S101 (set while the application runs)
        try:
            async with asyncio.timeout_at(deadline), self._places:
                signed = await is_signed(self._registries, reference, self.keys)
        except DeniedError as error:
            return f"which {error}, {error.remedy}"
        except (RegistryError, TimeoutError) as error:
            return f"whose signature cannot be read ({error or 'timeout'}), want a registry that answers; try again"
        if not signed:
            return f"want a signature by a key of images.trust; run cosign sign --key KEY {image}"
        if len(self._signed) >= _REMEMBERED:
            self._signed.clear()
        self._signed[image] = time.monotonic()
        return None
