"""A fleet and its agents, made up, in simulated time: which rule for the next server ends most turns. bench/picking.py runs it.

A server reads prompts one after the other, at READ bytes a second, and writes answers beside that, each in ANSWER_S. It keeps the prompts
of as many conversations as its memory has room for, and drops the one that was silent for longest. An agent sends its whole history with
each turn, then works with its tools; after some turns it begins a new conversation, whose system prompt it shares with all others.
"""

import functools
import heapq
import itertools
import random
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from api_server.binding import Binding
from api_server.bindings import Bindings
from api_server.peers import Told
from api_server.picking import ANSWER, choose, rendezvous, stays
from api_server.room import Room
from api_server.sessions import Turn

READ = 16_000
"""Bytes of prompt a second: 4,000 tokens, of which a mid-size GPU reads so many."""
ANSWER_S = 4.0
SLOTS = 4
SYSTEM = 40_000
"""Bytes that all conversations begin with: system prompt and tools of a coding agent."""
TURNS, GROWTH, TOOLS_S = 30, 9_000, 6.0
"""Turns of a conversation, bytes that each adds, and the seconds between two, on average."""


@functools.cache
def _digest(conversation: int) -> int:
    return random.Random(conversation).getrandbits(64)  # noqa: S311


@dataclass(eq=False)
class Server:
    """One of a fleet."""

    host: str
    memory: int
    load: int = 0
    in_flight: int = 0
    """Those in its own line, which some gateways make, too."""
    running: int = 0
    line: "deque[Asked]" = field(default_factory=deque)
    busy_s: float = 0.0
    reads_until: float = 0.0
    kept: OrderedDict[int, int] = field(default_factory=OrderedDict)
    """Conversation to the bytes of its prompt."""

    def read(self, asked: "Asked", now: float) -> tuple[float, int]:
        """When a prompt is read that comes now, and how many bytes of it were there."""
        there = min(self.kept.pop(asked.conversation, SYSTEM if self.kept else 0), asked.size)
        took_s = (asked.size - there) / READ
        self.reads_until = max(now, self.reads_until) + took_s
        self.busy_s += took_s
        self.kept[asked.conversation] = asked.size
        while sum(self.kept.values()) > self.memory and len(self.kept) > 1:
            self.kept.popitem(last=False)
        return self.reads_until, there


@dataclass(eq=False)
class Asked:
    """A turn on its way."""

    agent: int
    conversation: int
    number: int
    size: int
    reusable: int
    """Bytes of it that the server of the turn before has read."""
    at: float = 0.0
    unread: int = 0
    """What its gateway counted as its load."""
    waits_for: Server | None = None

    @property
    def name(self) -> int:
        """Of its conversation, as good as a digest."""
        return _digest(self.conversation)


class Gateway:
    """A rule for the next server."""

    now: float = 0.0

    def pick(self, asked: Asked, fleet: Sequence[Server]) -> Server | None:
        """The server of a turn. None: it waits, and is asked about again when a turn has ended."""
        raise NotImplementedError

    def order(self, waiting: Sequence[Asked]) -> Sequence[Asked]:
        """Who is asked about first."""
        return list(waiting)

    def ended(self, asked: Asked) -> None:
        """A turn has its answer."""


class Random(Gateway):
    """LiteLLM's default."""

    def __init__(self) -> None:
        self._numbers = random.Random(7)  # noqa: S311

    def pick(self, asked: Asked, fleet: Sequence[Server]) -> Server | None:
        return self._numbers.choice(fleet)


class LeastBusy(Gateway):
    """Ours of before: the favourite of the conversation, unless another has two requests fewer. The others wait in the gateway."""

    def pick(self, asked: Asked, fleet: Sequence[Server]) -> Server | None:
        free = [server for server in fleet if server.in_flight < SLOTS]
        if not free:
            return None
        near = [server for server in free if server.in_flight <= min(each.in_flight for each in free) + 1]
        favourite = max(free, key=lambda server: rendezvous(asked.name, server.host))
        return favourite if favourite in near else min(near, key=lambda server: server.in_flight)


class ConsistentHash(Gateway):
    """nginx's `hash … consistent` over the session's header: always the same server, which has a line of its own."""

    def pick(self, asked: Asked, fleet: Sequence[Server]) -> Server | None:
        return max(fleet, key=lambda server: rendezvous(asked.name, server.host))


class BoundedHash(Gateway):
    """The same with bounded loads, as KubeAI's: the next one while a server has over 1.25 times the mean in flight."""

    def pick(self, asked: Asked, fleet: Sequence[Server]) -> Server | None:
        limit = 1.25 * (sum(server.in_flight for server in fleet) + 1) / len(fleet)
        roomy = [server for server in fleet if server.in_flight + 1 <= limit] or fleet
        return max(roomy, key=lambda server: rendezvous(asked.name, server.host))


_UNKNOWN = Binding("", 0, 0.0)


class Ours(Gateway):
    """The code of the API server, and what api_server/upstreams.py does around it."""

    def __init__(self, *, knows_memory: bool = True, oldest_first: bool = True) -> None:
        self._knows_memory, self._oldest_first = knows_memory, oldest_first
        self._bindings = Bindings(lease_s=float("inf"), clock=lambda: self.now)
        self._turns: dict[Asked, Binding | None] = {}
        self._short = False
        self.told: list[Told] = []
        """Turns that other gateways have still to hear of."""

    def order(self, waiting: Sequence[Asked]) -> Sequence[Asked]:
        self._short = False
        if not (self._knows_memory and self._oldest_first):
            return list(waiting)
        known = {asked: self._bindings.meet(self._turn(asked)) or _UNKNOWN for asked in waiting}
        return sorted(waiting, key=lambda asked: self._rank(known[asked]))

    def _rank(self, conversation: Binding) -> tuple[float, ...]:
        return (0, conversation.began) if conversation.host else self._bindings.rank(conversation)

    def pick(self, asked: Asked, fleet: Sequence[Server]) -> Server | None:
        turn = self._turn(asked)
        self._bindings.came(turn)
        self._leave(asked)
        binding = self._bindings.find(turn)
        home = next((server for server in fleet if binding is not None and server.host == binding.host), None)
        if home is None and self._short:
            return None
        free = [server for server in fleet if server.in_flight < SLOTS]
        waits = home is not None and home not in free
        if not free or (waits and home and binding and (self._knows_memory or stays(turn, binding, home, min(each.load for each in free)))):
            return self._join(asked, home, binding)
        if self._knows_memory:
            roomy = (each for each in free if self._bindings.has_room(each.host, turn.size, Room(0, each.memory), binding))
            free = [home] if home else list(roomy)
        if not free:
            return self._join(asked, home, binding)
        choice = choose(turn, binding, free, self._bindings.held)
        before = binding.name if binding is not None else b""
        bound = self._bindings.bind(turn, choice.server.host, binding, Room(0, choice.server.memory) if self._knows_memory else None)
        if bound is not None:
            self.told.append(Told(before, bound.name, bound.host, bound.size, bound.owner, bound.tokens))
        self._bindings.works(bound, 1)
        self._turns[asked] = bound
        asked.unread = choice.unread
        return choice.server

    def ended(self, asked: Asked) -> None:
        self._bindings.works(self._turns.pop(asked), -1)

    @staticmethod
    def _turn(asked: Asked) -> Turn:
        key = asked.name.to_bytes(8)
        return Turn((key,), key, asked.size)

    def _join(self, asked: Asked, home: Server | None, binding: Binding | None) -> None:
        self._short = self._short or (home is None and self._knows_memory)
        if home is not None and binding is not None:
            asked.waits_for, asked.unread = home, max(0, asked.size - binding.size)
            home.load += asked.unread + ANSWER
            self._bindings.works(binding, 1, in_line=True)
            self._turns[asked] = binding

    def _leave(self, asked: Asked) -> None:
        if asked.waits_for is not None:
            asked.waits_for.load -= asked.unread + ANSWER
            asked.waits_for = None
            self._bindings.works(self._turns.pop(asked), -1, in_line=True)

    def hear(self, other: "Ours", told: Sequence[Told], memory: int) -> None:
        """What another gateway says of its conversations."""
        self._bindings.hear(other._bindings.talk(told), Room(0, memory), 0.0)
        self._bindings.coming.elsewhere = other._bindings.talk([]).coming


class Pair(Gateway):
    """Two of ours, of which clients get one at random for each turn. After `dies_s` seconds the first is gone, and what it knew."""

    def __init__(self, *, agree: bool, dies_s: float) -> None:
        self._agree, self._dies_s = agree, dies_s
        self._members = [Ours(), Ours()]
        self._where: dict[Asked, Ours] = {}
        self._settled = 0.0

    def pick(self, asked: Asked, fleet: Sequence[Server]) -> Server | None:
        if self._agree and self.now >= self._settled + 1:
            self._settle(fleet[0].memory)
        return self._where[asked].pick(asked, fleet)

    def order(self, waiting: Sequence[Asked]) -> Sequence[Asked]:
        living = self._living()
        for asked in waiting:
            if self._where.get(asked) not in living:
                self._where[asked] = living[_digest(asked.number + TURNS * asked.conversation) % len(living)]
        lines = [member.order([asked for asked in waiting if self._where[asked] is member]) for member in living]
        return [asked for each in itertools.zip_longest(*lines) for asked in each if asked is not None]

    def ended(self, asked: Asked) -> None:
        self._where.pop(asked).ended(asked)

    def _living(self) -> Sequence[Ours]:
        for member in self._members:
            member.now = self.now
        return self._members if self.now < self._dies_s else self._members[1:]

    def _settle(self, memory: int) -> None:
        self._settled, living = self.now, self._living()
        words = [(member, member.told) for member in living]
        for member in living:
            member.told = []
        for member, (other, told) in itertools.product(living, words):
            if other is not member:
                member.hear(other, told, memory)


@dataclass(frozen=True)
class Outcome:
    """Of one simulated hour."""

    turns_a_minute: float
    warm: float
    """Of the bytes that some server had read for the turn before, the share that was not read again."""
    first_s: Sequence[float]
    """Seconds from a turn to its first word, sorted."""
    most_by_mean: float
    """Time that the busiest server read, by the mean."""


class Hour:
    """Agents before a gateway and its fleet. The same seed makes the same agents for every gateway."""

    def __init__(
        self, gateway: Gateway, servers: int, agents: int, memory: int, seed: int = 1, counted: tuple[float, float] = (0, 3600)
    ) -> None:
        """`memory`: bytes of prompts that each server keeps. `counted`: the seconds in which turns count, by when they are read and end."""
        self._counted = counted
        self._gateway = gateway
        self._fleet = [Server(f"10.0.0.{number}", memory) for number in range(servers)]
        self._numbers = [random.Random(f"{seed} {agent}") for agent in range(agents)]  # noqa: S311
        self._conversations, self._order = itertools.count(), itertools.count()
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._waiting: list[Asked] = []
        self._firsts: list[float] = []
        self._found: Counter[str] = Counter()

    def run(self) -> Outcome:
        for agent, numbers in enumerate(self._numbers):
            self._at(numbers.uniform(0, TOOLS_S), lambda now, agent=agent: self._send(self._first_turn(agent), now))
        while self._events and self._events[0][0] < 3600:
            now, _, happens = heapq.heappop(self._events)
            self._gateway.now = now
            happens(now)
        busy = [server.busy_s for server in self._fleet]
        warm = self._found["warm"] / max(1, self._found["reusable"])
        minutes = (self._counted[1] - self._counted[0]) / 60
        return Outcome(self._found["turns"] / minutes, warm, sorted(self._firsts), max(busy) * len(busy) / sum(busy))

    def _counts(self, now: float) -> bool:
        return self._counted[0] <= now < self._counted[1]

    def _at(self, when: float, happens: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), happens))

    def _grown(self, agent: int) -> int:
        """Bytes that a turn adds: what tools said, mostly little, sometimes much."""
        return int(self._numbers[agent].expovariate(1 / GROWTH))

    def _first_turn(self, agent: int) -> Asked:
        return Asked(agent, next(self._conversations), 0, SYSTEM + self._grown(agent), 0)

    def _send(self, asked: Asked, now: float) -> None:
        asked.at = now
        self._waiting.append(asked)
        self._admit(now)

    def _admit(self, now: float) -> None:
        for asked in self._gateway.order(self._waiting):
            server = self._gateway.pick(asked, self._fleet)
            if server is not None:
                self._waiting.remove(asked)
                server.in_flight += 1
                server.load += asked.unread + ANSWER
                server.line.append(asked)
                self._start(server, now)

    def _start(self, server: Server, now: float) -> None:
        while server.line and server.running < SLOTS:
            asked = server.line.popleft()
            server.running += 1
            read, there = server.read(asked, now)
            if self._counts(now):
                self._found["reusable"] += asked.reusable
                self._found["warm"] += min(there, asked.reusable)
            self._at(read, lambda then, asked=asked: self._answers(asked, server, then))

    def _answers(self, asked: Asked, server: Server, now: float) -> None:
        server.load -= asked.unread
        if self._counts(now):
            self._firsts.append(now - asked.at)
        self._at(now + ANSWER_S, lambda then: self._ends(asked, server, then))

    def _ends(self, asked: Asked, server: Server, now: float) -> None:
        server.in_flight -= 1
        server.running -= 1
        server.load -= ANSWER
        self._found["turns"] += self._counts(now)
        self._gateway.ended(asked)
        agent, pause = asked.agent, self._numbers[asked.agent].expovariate(1 / TOOLS_S)
        if asked.number + 1 < TURNS:
            following = Asked(agent, asked.conversation, asked.number + 1, asked.size + self._grown(agent), asked.size)
        else:
            following = self._first_turn(agent)
        self._at(now + pause, lambda then: self._send(following, then))
        self._start(server, now)
        self._admit(now)
