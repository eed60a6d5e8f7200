"""How many servers the fleet gets: what is needed, when it is given, and when it is taken away."""

import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st

from api_server.activator import Scale, Servers, Settings
from api_server.address import Address
from api_server.bindings import SMALL, Bindings
from api_server.demand import Demand, OfModel, demand_of, lacking, needed, needed_by
from api_server.metrics import Metrics
from api_server.pauses import PAUSE_S
from api_server.peers import Peers
from api_server.place import Wanted
from api_server.pools import Pool, PoolKeys
from api_server.room import Room
from api_server.scaling import Scaling
from api_server.sessions import Turn
from api_server.settings import Route
from api_server.upstreams import Upstream

LEASE_S = 900
LAST = "10.0.0.3"
ROUTE = Route(url="http://ollama:11434", model="m:1", engine="ollama", context_length=2048, slots=2, cached_tokens=100)


def demand(waiting: int = 0, in_flight: int = 0, idle_s: float = 0, **fields: object) -> Demand:
    """Of a gateway that reaches all servers."""
    said = {"waiting": waiting, "in_flight": in_flight, "idle_s": idle_s, "places": 4, "ready": 64, **fields}
    return Demand.model_validate(said)


def of_model(held: int = 0, waiting: int = 0, each: int = 100) -> dict[str, OfModel]:
    """A server keeps two of these conversations in slots, and one more."""
    return {"m": OfModel(slots=2, size=2 * each, held=(held, held * each), waiting=(waiting, waiting * each))}


OLD = {"places": 0, "ready": 0}


@pytest.mark.parametrize(
    ("demands", "servers"),
    [
        ([], 0),
        ([demand()], 0),
        ([demand(in_flight=1)], 1),
        ([demand(in_flight=4)], 1),
        ([demand(in_flight=3), demand(in_flight=3)], 2),
        ([demand(waiting=9, short=9)], 3),
        # Those who wait for the server that holds their conversation are helped by no other one.
        ([demand(waiting=9, in_flight=4)], 1),
        ([demand(models=of_model(3))], 1),
        ([demand(models=of_model(4))], 2),
        # All know of the same conversations, and each of those that wait at it.
        ([demand(models=of_model(3)), demand(models=of_model(3))], 1),
        ([demand(models=of_model(3, 2)), demand(models=of_model(2, 2))], 3),
        ([demand(waiting=2, short=2, models=of_model(0, 2))], 1),
        # Of before an update.
        ([demand(waiting=9, **OLD)], 1),
        ([demand(**OLD)], 0),
    ],
)
def test_what_is_needed(demands: list[Demand], servers: int) -> None:
    assert needed(demands) == servers


@pytest.mark.parametrize(
    ("said", "servers"),
    [
        (demand(in_flight=6), 2),
        # There is room by the sums, and yet it waits where two servers answer.
        (demand(waiting=1, short=1, ready=2), 3),
        (demand(waiting=9, short=9, ready=1), 3),
        # It waits for the server that holds its conversation.
        (demand(waiting=1, in_flight=4, ready=1), 1),
        (demand(waiting=1, short=1, ready=0), 1),
    ],
)
def test_an_autoscaler_is_told_of_a_request_that_no_server_has_room_for(said: Demand, servers: int) -> None:
    assert needed_by(said) == servers


@given(slots=st.integers(1, 64), size=st.integers(0, 10**9), count=st.integers(0, 1000), each=st.integers(1, 10**7))
def test_the_servers_for_conversations_are_the_fewest_that_fit(slots: int, size: int, count: int, each: int) -> None:
    room = Room(slots, size)
    found = room.servers(count, count * each)

    def fit(servers: int) -> bool:
        """Some server has the mean of them, or more."""
        most, rest = divmod(count, servers)
        return (
            (rest == 0 and room.fits(most, most * each))
            or count <= servers * slots
            or (count - servers * (slots - 1)) * each <= servers * size
        )

    assert (found == 0) == (count == 0)
    assert fit(max(found, 1))
    assert found < 2 or not fit(found - 1)


class Clock:
    """Rounds of one Scaling, each some seconds after the one before."""

    def __init__(self, least: int = 1, most: int = 4) -> None:
        self.scaling, self.now = Scaling(least, most, LEASE_S), 1000.0

    def wanted(
        self, demands: Sequence[Demand | None], current: int, after_s: float = 1, there: int | None = None, last: str | None = LAST
    ) -> int:
        self.now += after_s
        return self.scaling.wanted(demands, current, current if there is None else there, last, self.now)

    def is_spare(self) -> "Clock":
        """Three servers, of which one was needed for a whole lease."""
        assert self.wanted([demand(in_flight=1)], 3) == 3
        assert not self.scaling.leaving
        assert self.wanted([demand(in_flight=1)], 3, LEASE_S) == 3
        assert self.scaling.leaving
        return self


QUIET = demand(in_flight=1, servers={LAST: float(LEASE_S)})
BUSY = demand(in_flight=1, servers={LAST: LEASE_S - 1.0})


@pytest.mark.parametrize(
    ("demands", "current", "wanted"),
    [
        ([demand(waiting=1, short=1)], 0, 1),
        ([demand(waiting=9, short=9), None], 0, 3),
        ([demand(waiting=99, short=99)], 0, 4),
        ([], 0, 1),
        ([demand()], 1, 1),
        # It waits although all servers are there: by the sums there is room, but no server has it.
        ([demand(waiting=1, short=1)], 2, 3),
        ([demand(waiting=1, short=1, ready=1)], 2, 2),
        ([demand(waiting=1, short=1), demand(ready=1)], 2, 2),
        ([demand(waiting=1, short=1)], 4, 4),
        # Somebody else wanted more than the most.
        ([demand(waiting=1, short=1)], 6, 6),
    ],
)
def test_it_goes_up_at_once(demands: list[Demand | None], current: int, wanted: int) -> None:
    assert Clock().wanted(demands, current) == wanted


def test_a_server_goes_when_fewer_did_for_a_lease_and_it_had_no_request() -> None:
    clock = Clock().is_spare()
    assert clock.wanted([QUIET, BUSY], 3) == 3
    assert clock.wanted([QUIET, QUIET], 3) == 2
    # One at a time: the pod is still there.
    assert clock.wanted([QUIET], 2, there=3) == 2
    assert clock.wanted([QUIET], 2) == 1
    assert [clock.wanted([demand(servers={LAST: 10.0**6})], 1, LEASE_S) for _ in range(3)] == [1, 1, 1], "the least"


@pytest.mark.parametrize(
    ("demands", "last"),
    [
        ([BUSY], LAST),
        ([QUIET, None], LAST),
        ([None], LAST),
        ([], LAST),
        # Nobody knows which server it is.
        ([QUIET], None),
        # Of before an update: it may have sent the server something.
        ([demand(in_flight=1, **OLD)], LAST),
    ],
)
def test_a_server_stays_while_anybody_may_use_it(demands: list[Demand | None], last: str | None) -> None:
    assert Clock().is_spare().wanted(demands, 3, last=last) == 3


def test_a_server_that_nobody_can_reach_or_has_reached_goes() -> None:
    assert Clock().is_spare().wanted([QUIET], 3, last="") == 2
    assert Clock().is_spare().wanted([demand(in_flight=1)], 3) == 2, "the gateway never saw that address"


def test_a_server_that_is_needed_again_gets_conversations_again() -> None:
    clock = Clock().is_spare()
    assert clock.wanted([demand(in_flight=9, servers={LAST: 10.0**6})], 3) == 3
    assert not clock.scaling.leaving
    clock = Clock().is_spare()
    # While one leaves, who waits gets that one, and no other.
    assert clock.wanted([demand(waiting=1, short=1)], 3) == 3
    assert not clock.scaling.leaving
    assert clock.wanted([demand(waiting=1, short=1)], 3) == 4


def test_an_idle_fleet_goes_to_zero_where_it_may() -> None:
    clock, idle = Clock(least=0), demand(servers={LAST: 10.0**6}, idle_s=10**6)
    assert [clock.wanted([idle], 1, pause_s) for pause_s in (1, LEASE_S - 1, 1, 1)] == [1, 1, 1, 0]


@given(
    least=st.integers(0, 2),
    rounds=st.lists(
        st.tuples(st.integers(0, 12), st.integers(0, 3), st.booleans(), st.floats(0, 2 * LEASE_S), st.sampled_from([1.0, 300.0, 900.0])),
        max_size=60,
    ),
)
def test_it_never_leaves_its_bounds_takes_two_or_takes_one_in_use(least: int, rounds: list[tuple[int, int, bool, float, float]]) -> None:
    clock, current = Clock(least, 4), 0
    for in_flight, waiting, answers, quiet_s, pause_s in rounds:
        said = demand(waiting=waiting, short=waiting, in_flight=in_flight, ready=current, servers={LAST: quiet_s})
        told = clock.scaling.leaving
        wanted = clock.wanted([said] if answers else [said, None], current, pause_s)
        assert least <= wanted <= 4
        if wanted < current:
            assert wanted == current - 1 >= needed([said])
            assert answers
            assert told
            assert quiet_s >= LEASE_S
        current = wanted


def test_conversations_need_memory_for_as_long_as_a_tool_may_take() -> None:
    now = [0.0]
    table = Bindings(clock=lambda: now[0])
    for name in (b"1", b"2", b"3"):
        table.bind(Turn((name,), name, 2 * SMALL, owner=b"somebody", goes_on=True), "h", None)
    table.bind(Turn((b"s",), b"s", SMALL, owner=b"somebody", goes_on=True), "h", None)
    table.works(table.find(Turn((b"1",), b"1", 2 * SMALL)), 1)
    table.coming.expect("h", 1, 500)
    table.coming.elsewhere = {"h": (1, 50)}
    assert table.needing(["h", "none"]) == (5, 6 * SMALL + 550)
    assert table.needing([]) == (0, 0)
    now[0] += PAUSE_S
    assert table.needing(["h"]) == (3, 2 * SMALL + 550), "one is at work, and two have still to be read"


def test_a_gateway_says_what_it_needs() -> None:
    upstream = Upstream(ROUTE.url, 4, "ollama", lines=True)
    said = demand_of(0, [upstream], {"m": ROUTE})
    assert (said.places, said.ready, said.servers) == (4, 0, {})
    assert said.models == {"m": OfModel(slots=2, size=300, held=(0, 0), waiting=(0, 0))}
    assert demand_of(0, [], {"m": ROUTE}).models == {}
    assert not lacking([said], 0)


def test_a_server_that_is_to_go_gets_no_new_conversation_where_another_one_will_do() -> None:
    upstream = Upstream(ROUTE.url, 2, addresses={host: Address(host, 1) for host in ("h1", "h2")})
    turns = [Turn((name,), name, 2 * SMALL, owner=b"somebody", goes_on=True) for name in (b"%d" % number for number in range(40))]

    def place(turn: Turn) -> str:
        found = upstream.take(Wanted(ROUTE, "m", turn))
        assert found is not None
        upstream.worked(found)
        upstream.release(found)
        return found.address.host

    homes = {turn.own: place(turn) for turn in turns[:20]}
    assert set(homes.values()) == {"h1", "h2"}
    upstream.leave("h2", 60)
    upstream.leave("h3", 60)
    assert {place(turn) for turn in turns[20:]} == {"h1"}
    assert [place(turn) for turn in turns[:20]] == list(homes.values()), "those that it holds go on"
    upstream.addresses["h1"].in_flight = 2
    assert place(Turn((b"new",), b"new", 2 * SMALL, goes_on=True)) == "h2"
    upstream.leave("h1", 60)
    upstream.addresses["h1"].in_flight = 0
    assert place(Turn((b"newer",), b"newer", 2 * SMALL, goes_on=True)) in ("h1", "h2"), "whoever says that of all says nothing"
    upstream.leave("h2", 0)
    assert upstream.addresses["h2"].leaving_until <= time.monotonic()


def test_a_gateway_says_what_each_set_of_servers_needs() -> None:
    routes = {
        "m": ROUTE,
        "s": Route(url="http://model-server:8080", max_in_flight=18, slots=2, cached_tokens=50),
        "t": Route(url="http://model-server-t:8080", max_in_flight=18),
        "p": Route(url="http://pool.example/v1", pool="p"),
    }
    keys = PoolKeys(None)
    upstreams = [
        Upstream(route.url, route.max_in_flight, route.engine, pool=Pool(route, keys) if route.pool else None, lines=True)
        for route in routes.values()
    ]
    metrics = Metrics(upstreams, routes, lambda: 0, Peers(b"self", 1))
    for number, model in enumerate(routes, 1):
        metrics.waiting[model] += number
    fleet, server, other = (metrics.demand(host) for host in ("", "model-server", "model-server-t"))
    assert fleet is not None
    assert server is not None
    assert other is not None
    assert (fleet.waiting, server.waiting, other.waiting) == (1, 2, 3)
    assert (fleet.models.keys(), server.models.keys(), other.models.keys()) == ({"m"}, {"s"}, set())
    assert (fleet.places, server.places, server.models["s"].slots) == (4, 18, 2)
    assert metrics.demand("nobody") is None
    assert metrics.demand("pool.example") is None, "a pool is scaled by its owners"


class Scaled(Servers):
    """Idle gateways, and a fleet whose scale is a number here."""

    def __init__(self, settings: Settings, name: str, session: aiohttp.ClientSession) -> None:
        super().__init__(settings, name, session)
        self.current = 0

    async def _demands(self) -> list[Demand | None]:
        return [demand(idle_s=10_000)]

    async def _address(self, ordinal: int) -> str | None:
        return f"10.0.0.{ordinal}"

    async def _scale(self, replicas: int | None = None) -> tuple[int, int]:
        self.current = self.current if replicas is None else replicas
        return self.current, self.current


def test_a_fleet_that_somebody_else_brings_up_stays_for_the_whole_idle_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """`up` would wait for it, and never see it, if it went at once because nobody had asked for it before."""
    now = 1000.0
    monkeypatch.setattr("api_server.activator.time", SimpleNamespace(monotonic=lambda: now))

    async def rounds() -> None:
        nonlocal now
        async with aiohttp.ClientSession() as session:
            scales = json.dumps({"ollama": {"most": 2, "idle_s": 900}})
            settings = Settings.model_validate({"gateways": "g:1", "stateful_sets_url": "http://k/statefulsets", "scales": scales})
            scaled = Scaled(settings, "ollama", session)
            now += 10_000
            await scaled.round()
            assert scaled.current == 0
            scaled.current = 2
            for pause_s, left in ((0, 2), (899, 2), (2, 2), (1, 1), (1, 0)):
                now += pause_s
                await scaled.round()
                assert scaled.current == left

    # Not asyncio.run, which leaves the thread without a loop for Pulumi's mocks.
    with closing(asyncio.new_event_loop()) as loop:
        loop.run_until_complete(rounds())


def test_each_set_of_servers_is_scaled_by_its_own_demand(tmp_path: Path) -> None:
    """What asks are the processes of the activator; a gateway and the cluster's API server are made up."""
    asked: list[str] = []
    replicas = {"ollama": 1, "model-server": 0}
    says = {"/demand": demand(), "/demand/model-server": demand(waiting=3, short=3, places=2, ready=0)}

    async def say(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(text=says[request.path].model_dump_json(), content_type="application/json")

    async def scale(request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if request.method == "PATCH":
            replicas[name] = (await request.json())["spec"]["replicas"]
        return web.json_response({"spec": {"replicas": replicas[name]}, "status": {"replicas": replicas[name]}})

    async def rounds() -> None:
        app = web.Application()
        app.router.add_get("/demand", say)
        app.router.add_get("/demand/{name}", say)
        app.router.add_route("*", "/statefulsets/{name}/scale", scale)
        (tmp_path / "token").write_text("t")
        async with TestServer(app) as server, aiohttp.ClientSession() as session:
            settings = Settings.model_validate(
                {
                    "gateways": f"127.0.0.1:{server.port}",
                    "stateful_sets_url": str(server.make_url("/statefulsets")),
                    "scales": json.dumps({name: {"most": 4, "idle_s": 900} for name in replicas}),
                    "token_file": tmp_path / "token",
                }
            )
            for name in replicas:
                await Servers(settings, name, session).round()

    with closing(asyncio.new_event_loop()) as loop:
        loop.run_until_complete(rounds())
    assert asked == ["/demand", "/demand/model-server"]
    assert replicas == {"ollama": 1, "model-server": 2}


def test_bounds_that_cross_are_refused() -> None:
    with pytest.raises(ValueError, match="least of at most 2"):
        Scale(least=3, most=2, idle_s=1)
