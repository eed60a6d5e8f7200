"""What a gateway says at /demand of its metrics port, and how many servers all gateways together need by it."""

import math
import time
from collections.abc import Mapping, Sequence

from pydantic import BaseModel

from api_server.bindings import SMALL
from api_server.room import Room
from api_server.settings import Route
from api_server.upstreams import Upstream

LEAVING_S = 5.0
"""Whoever scales says each second which server is to go. A gateway that does not hear it for so long forgets it."""
Sum = tuple[int, int]
"""Of conversations: how many, and their bytes."""


class OfModel(BaseModel):
    """Conversations with one model."""

    slots: int
    size: int
    """The memory of one server (room.Room)."""
    held: Sum
    """Those whose memory nobody else may have now, on servers that are there. Every gateway knows of all."""
    waiting: Sum
    """Those that wait here for memory."""


class Demand(BaseModel):
    """What one gateway says of the Ollama fleet, or of one model server. One of before an update says the first three alone."""

    waiting: int
    """Requests that wait for a place."""
    in_flight: int
    idle_s: float
    """Seconds without a request."""
    short: int = 0
    """Of those that wait, what another server could take: all but those in the line of the server that holds their conversation."""
    places: int = 0
    """Requests at once to one server."""
    ready: int = 0
    """Servers that answer."""
    servers: dict[str, float] = {}
    """By address, seconds without a request of this gateway."""
    models: dict[str, OfModel] = {}

    def quiet_s(self, server: str) -> float:
        """For how long this gateway has sent nothing to a server. One that it does not know has had nothing."""
        return self.servers.get(server, math.inf) if self.places else self.idle_s


def demand_of(waiting: int, fleet: Sequence[Upstream], routes: Mapping[str, Route]) -> Demand:
    """Of this gateway. `waiting`: requests for models of `routes`, which are those of the servers of `fleet`."""
    addresses = [address for upstream in fleet for address in upstream.addresses.values()]
    in_flight = sum(address.in_flight for address in addresses)
    idle_s = min((time.monotonic() - upstream.last_used for upstream in fleet), default=0.0)
    models: dict[str, OfModel] = {}
    for upstream, model, route in ((upstream, *each) for upstream in fleet for each in routes.items()):
        if upstream.url == route.url and (room := upstream.kept(route, model)) is not None:
            sizes = [wanted.turn.size for wanted in upstream.short() if wanted.model == model and wanted.turn.size > SMALL]
            held = upstream.conversations[model].needing(upstream.addresses)
            models[model] = OfModel(slots=room.slots, size=room.size, held=held, waiting=(len(sizes), sum(sizes)))
    return Demand(
        waiting=waiting,
        in_flight=in_flight,
        idle_s=0.0 if waiting or in_flight else round(idle_s, 1),
        short=sum(len(upstream.short()) for upstream in fleet),
        places=min((upstream.max_in_flight for upstream in fleet), default=0),
        ready=sum(address.answers for address in addresses),
        servers={host: idle_s for upstream in fleet for host, idle_s in upstream.idle().items()},
        models=models,
    )


def needed(demands: Sequence[Demand]) -> int:
    """The fewest servers with memory for every conversation that is at work, was just now, or waits, and with places for every request."""
    requests = sum(demand.in_flight + demand.short for demand in demands)
    places = max((demand.places for demand in demands), default=0)
    found = -(-requests // places) if places else int(any(demand.in_flight or demand.waiting for demand in demands))
    for model in {model for demand in demands for model in demand.models}:
        said = [demand.models[model] for demand in demands if model in demand.models]
        # Rooms differ a little: each gateway has learned by itself how many bytes a token is.
        room = Room(said[0].slots, min(each.size for each in said))
        held = max(each.held for each in said)
        count, size = (kept + sum(each.waiting[part] for each in said) for part, kept in enumerate(held))
        found = max(found, room.servers(count, size))
    return found


def lacking(demands: Sequence[Demand], current: int) -> bool:
    """Whether a request waits although every gateway reaches all servers: what each holds leaves it no room, whatever the sums say."""
    return any(demand.short for demand in demands) and all(demand.ready >= current for demand in demands)


def needed_by(demand: Demand) -> int:
    """The same by what one gateway knows, for autoscalers that read a number: one server more than answer while a request waits that all of
    them together have room for, but no single one."""
    return max(needed([demand]), demand.ready + 1 if lacking([demand], demand.ready) else 0)
