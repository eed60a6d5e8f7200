"""One request on its way: wait for a server, see that it fits, send it, relay the answer."""

import asyncio
import functools
import logging
import os
import re
import time

import aiohttp
from aiohttp import web

from api_server import access, errors, requests
from api_server.address import Address
from api_server.answer import Answer
from api_server.embeddings import PATHS as EMBEDDING_PATHS
from api_server.embeddings import Embeddings, Found, left
from api_server.intake import Claim, Intake
from api_server.limits import ACCOUNT
from api_server.metrics import Metrics
from api_server.patience import Patience
from api_server.place import Place, Wanted
from api_server.requests import Asked
from api_server.routing import Routing
from api_server.sending import Sender
from api_server.sessions import Sessions
from api_server.settings import Settings
from api_server.spending import spent
from api_server.upstreams import Upstream
from api_server.usage import Reader

log = logging.getLogger("api_server")
_RETRY_S = 2
_HELD_RETRY_S = 10
_MOST_SERVERS = 2
"""That see one request: one that kills its server must not go through the whole fleet."""
_FAULTS = (500, 502, 504)
"""Statuses of a server that fails. 503 is one that is full."""
_PRINTABLE = re.compile(r"[\x21-\x7e]{1,128}")
"""A request id that may stand in a header and a line of the log."""


class Proxy:
    """Forwards inference to the servers of a model."""

    def __init__(
        self,
        settings: Settings,
        routing: Routing,
        upstreams: dict[str, Upstream],
        metrics: Metrics,
        sender: Sender,
        intake: Intake,
        sessions: Sessions,
        embeddings: Embeddings | None = None,
    ) -> None:
        self._settings = settings
        self._routing = routing
        self._upstreams = upstreams
        self._metrics = metrics
        self._sender = sender
        self._intake = intake
        self._sessions = sessions
        self._embeddings = embeddings

    async def infer(self, request: web.Request) -> web.StreamResponse:
        """A POST of requests.INFERENCE."""
        started = time.monotonic()
        offered = request.headers.get("x-request-id", "")
        request_id = offered if _PRINTABLE.fullmatch(offered) else os.urandom(16).hex()
        account = request[ACCOUNT]
        key, model, status = account.key.name, "unknown", 500
        claim = self._intake.claim()
        try:
            asked = await self._understood(request, claim, self._routing.seen_by(account.key.grant.models))
            model = asked.model
            self._metrics.left_out(model, asked.dropped)
            reader = Reader(asked.stream, drop_usage=asked.drops_usage)
            answer = Answer(request, request_id, model, reader, self._settings.silence_s)
            try:
                with answer, self._intake.claim() as memory:
                    found = await self._found(key, asked, memory)
                    response = await self._completed(request, answer, asked, claim, found)
                status = response.status
            except errors.ApiError as error:
                status = error.status
                if error.body["error"]["code"] == "context_length_exceeded":
                    self._metrics.too_long.labels(model).inc()
                response = await answer.fail(error)
            finally:
                self._metrics.answered(model, reader, started)
                used = spent(reader, asked)
                self._metrics.spent(key, model, used, asked.server_s)
                account.charge(used.prompt + used.completion)
            return response
        except errors.ApiError as error:
            status = error.status
            error.headers["x-request-id"] = request_id
            raise
        except (asyncio.CancelledError, ConnectionResetError):
            status = 499
            raise
        finally:
            claim.free()
            elapsed = time.monotonic() - started
            self._metrics.of(self._metrics.requests, model, str(status)).inc()
            self._metrics.asked(key, model, status)
            self._metrics.of(self._metrics.duration, model).observe(elapsed)
            access.write(request_id, key, model, status, elapsed)

    async def _found(self, key: str, asked: Asked, memory: Claim) -> Found | None:
        """What of the answer was made before. None: nothing is kept of such answers."""
        if self._embeddings is None or asked.path not in EMBEDDING_PATHS:
            return None
        version = await self._sender.version(self._upstreams[asked.route.url].addresses.values(), asked.model, asked.route)
        return await self._embeddings.find(key, version, asked, memory) if version else None

    async def _completed(self, request: web.Request, answer: Answer, asked: Asked, claim: Claim, found: Found | None) -> web.StreamResponse:
        """An answer of which a part may be there. Raises ApiError."""
        if found is None or self._embeddings is None:
            return await self._answer(request, answer, asked, claim)
        self._metrics.embedded(asked.model, found.count, len(found.had), found.saved_s)
        if found.is_all:
            return await answer.own(found.whole(asked.model))
        asked.body = left(asked, found)
        embeddings = self._embeddings
        answer.finish = lambda document: embeddings.merged(found, document, time.monotonic() - answer.sent)
        answer.in_parts = not found.count
        answer.reader.longest_document = found.limit
        return await self._answer(request, answer, asked, claim)

    async def _understood(self, request: web.Request, claim: Claim, routing: Routing) -> Asked:
        body = await self._intake.read(request, claim)
        turn = functools.partial(self._sessions.turn, request[ACCOUNT].key.name.encode(), self._sessions.said(request.headers))
        return await self._intake.beside(len(body), functools.partial(requests.understood, request.path, body, routing, turn))

    async def _answer(self, request: web.Request, answer: Answer, asked: Asked, claim: Claim) -> web.StreamResponse:
        """Send to the best address, and to another one only while nothing of an answer has come. Raises ApiError."""
        upstream = self._upstreams[asked.route.url]
        wanted = Wanted(asked.route, asked.model, asked.turn, priority=request[ACCOUNT].key.grant.priority)
        place: Place | None = await self._place(upstream, wanted)
        seen = 0
        while place is not None:
            address = place.address
            begun = answer.sent = time.monotonic()
            try:
                if asked.is_counted_here:
                    return await answer.own(await self._sender.count(address, asked))
                async with (
                    Patience(self._settings.request_timeout_s) as patience,
                    await self._sender.send(request, address, asked, answer.request_id, patience) as source,
                ):
                    # Nobody else will get it now, and an answer may take minutes.
                    asked.body = {}
                    claim.free()
                    return await self._relay(answer, source, patience, upstream, place)
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
                # It never saw the request.
                self._note(upstream, address, error)
                address.answers = False
            except TimeoutError as error:
                # It works on the request, or hangs; a second server would only do the same work again.
                self._failed(upstream, address, error)
                raise errors.upstream_failed(asked.model, f"nothing for {self._settings.request_timeout_s:g} s") from None
            except aiohttp.ClientConnectionError as error:
                # Never a client's leaving, which is a plain ConnectionResetError.
                self._failed(upstream, address, error)
                seen += 1
            except (aiohttp.ClientError, ValueError) as error:
                self._failed(upstream, address, error)
                raise errors.upstream_failed(asked.model, "an answer that is no HTTP") from None
            finally:
                upstream.release(place)
                asked.server_s += time.monotonic() - begun
            if seen == _MOST_SERVERS:
                break
            wanted = wanted.elsewhere(address.host)
            place = upstream.take(wanted)
            if place is None and upstream.serves(wanted):
                # The others are busy.
                place = await self._place(upstream, wanted)
        raise errors.upstream_failed(asked.model, "a broken connection") if seen else errors.unavailable(asked.model, _RETRY_S)

    async def _relay(
        self, answer: Answer, source: aiohttp.ClientResponse, patience: Patience, upstream: Upstream, place: Place
    ) -> web.StreamResponse:
        address = place.address
        address.spoke()
        if source.status == 200:
            upstream.worked(place)
        try:
            if address.pool is not None and source.status != 200:
                raise await address.pool.refusal(source, answer.model)
            if not answer.is_stream:
                return await answer.relay(source, patience, address)
            with address.streaming(place.read) as begin:
                # In a task of its own: a part that comes would wake everything that waits for this, one after the other.
                return await asyncio.create_task(answer.relay(source, patience, address, begin))
        except errors.ApiError as error:
            if source.status in _FAULTS and error.status in _FAULTS:
                upstream.failed(address, f"status {source.status}")
            raise
        except aiohttp.ClientError as error:
            self._failed(upstream, address, error)
            raise errors.upstream_failed(answer.model, "a broken answer") from None
        finally:
            place.said(answer.reader.prompt_tokens, answer.reader.completion_tokens)
            # An exact answer of before says what its prompt had found then.
            says = upstream.engine != "ollama" and source.headers.get("x-cache") != "hit"
            self._metrics.turned(answer.model, place, answer.reader, says=says)

    async def _place(self, upstream: Upstream, wanted: Wanted) -> Place:
        """A claimed place. When no server has the model, the request waits: the fleet may be at zero, or between two pods. So it does when
        all are busy, or the one that holds its conversation is, where to wait is sooner. Raises ApiError."""
        if (place := upstream.take(wanted, sure=bool(self._settings.hold_s or self._settings.queue_s))) is not None:
            return place
        served, model = upstream.serves(wanted), wanted.model
        limit_s = max(self._settings.queue_s if served else 0, self._settings.hold_s if not served or upstream.awaits(model) else 0)
        if not limit_s:
            # One that took no connection last time may take one now.
            if not served and (place := upstream.take(wanted)) is not None:
                return place
            raise errors.too_busy(model, _RETRY_S) if served else errors.unavailable(model, _RETRY_S)
        if upstream.is_full_of(wanted, self._settings.max_waiting):
            raise errors.too_busy(model, _HELD_RETRY_S)
        started = time.monotonic()
        self._metrics.waiting[model] += 1
        try:
            return await upstream.wait(wanted, limit_s)
        except TimeoutError:
            if upstream.serves(wanted):
                raise errors.too_busy(model, _HELD_RETRY_S) from None
            raise errors.held_too_long(model, self._settings.hold_s, _HELD_RETRY_S) from None
        finally:
            self._metrics.waiting[model] -= 1
            self._metrics.held.labels(model).observe(time.monotonic() - started)

    def _failed(self, upstream: Upstream, address: Address, error: BaseException) -> None:
        upstream.failed(address, type(error).__name__)
        self._note(upstream, address, error)

    def _note(self, upstream: Upstream, address: Address, error: BaseException) -> None:
        self._metrics.upstream_errors.labels(upstream.url, type(error).__name__).inc()
        log.warning("%s: %s from %s", upstream.url, type(error).__name__, address.host)
