"""Which server holds the prompt of which conversation, and which servers have room for more."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

from api_server.binding import Binding
from api_server.density import Density
from api_server.lineage import Lineage
from api_server.pauses import SHORTEST_PAUSE_S, OfOwners
from api_server.peers import Talk, Told
from api_server.room import Coming, Room
from api_server.sessions import Turn
from api_server.sums import Sums

LEASE_S = 1800.0
"""After so long without a turn, a conversation counts as ended. Agents wait minutes for tools and people; NVIDIA's Dynamo keeps as long."""
MOST = 65_536
"""Conversations that are known: about 35 MiB (bench/results/picking.json). Beyond it, the one that was silent for longest is forgotten."""
SLICE_S = 120.0
"""Who has waited for room for so long gets it before all others, from conversations that have had theirs for so long."""
SMALL = 8192
"""Bytes of a request that takes next to no room, as for a title."""


def is_aside(turn: Turn, known: Binding) -> bool:
    """Whether a request has the id of a conversation, and not its history: agents ask for titles so."""
    return bool(known.host) and turn.size <= SMALL < known.size


class Bindings:
    """The conversations with one model at one kind of server, in the order of their last turns."""

    def __init__(self, most: int = MOST, lease_s: float = LEASE_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._lease_s, self._clock = most, lease_s, clock
        self._known: OrderedDict[bytes, Binding] = OrderedDict()
        self._on: dict[str, OrderedDict[Binding, None]] = {}
        """Of each host, its conversations that take room, in the order of their last turns."""
        self._kept = Sums[str]()
        """Their bytes."""
        self.coming = Coming()
        self._working: set[Binding] = set()
        """Those that have turns at work."""
        self.held = Sums[str]()
        """Bytes of prompt of all conversations that are bound to a host."""
        self.bound = Sums[str]()
        """How many those are."""
        self.owned = Sums[bytes]()
        """Bytes of prompt that servers hold for each owner."""
        self.density, self.pauses, self.lineage = Density(), OfOwners(), Lineage(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def find(self, turn: Turn) -> Binding | None:
        """The conversation, by the longest part of it that is known."""
        self.expire()
        for name in turn.known:
            if (found := self._known.get(name)) is not None:
                return found
        return None

    def came(self, turn: Turn) -> None:
        """A turn is here, from outside: the pause of its conversation has ended. One that it spent on an agent of its own says nothing of
        others."""
        self.lineage.helps(turn.parent, self._clock())
        if (found := self.find(turn)) is not None and found.paused is not None:
            if found.helped < found.paused:
                self.pauses.add(found.owner, self._clock() - found.paused)
            found.paused = None

    def meet(self, turn: Turn) -> Binding | None:
        """The same, of a turn that waits: a conversation that is not known begins now. None when the turn is no part of one."""
        found, now = self.find(turn), self._clock()
        if found is None and turn.own:
            found = self._add(Binding("", 0, now, self.lineage.began(turn, now), now, turn.owner, turn.own, parent=turn.parent))
        if found is not None and not found.host:
            # Clients that are told to come again do so sooner.
            found.since = now if found.seen < now - SLICE_S else found.since
            found.seen = now
            self._known.move_to_end(found.name)
            self.lineage.helps(turn.parent, now)
        return found

    def bind(self, turn: Turn, host: str, known: Binding | None, room: Room | None = None) -> Binding | None:
        """A server has read a turn. `known`: what `find` found. `room`: of the server, None when nobody knows: conversations that were
        silent for longest lose theirs to this one. None when the turn is no part of a conversation."""
        if not turn.own:
            return None
        if known is not None and is_aside(turn, known):
            return known
        there = self._known.get(turn.own)
        if known is not None and self._known.get(known.name) is known:
            binding = known
            if there is not None and there is not known:
                self._drop(there)
        else:
            binding = there or Binding("", 0, 0.0, self.lineage.began(turn, self._clock()), 0.0, turn.owner, turn.own, parent=turn.parent)
        since = binding.since if binding.host else self._clock()
        self._lose(binding)
        self._known.pop(binding.name, None)
        binding.name, binding.host, binding.size, binding.seen, binding.since = turn.own, host, turn.size, self._clock(), since
        self._add(binding)
        if turn.size > SMALL:
            self._on.setdefault(host, OrderedDict())[binding] = None
            self._kept.add(host, turn.size)
        self.held.add(host, turn.size)
        self.bound.add(host, 1)
        self.owned.add(binding.owner, turn.size)
        if room is not None:
            self._make_room(host, room, binding)
        return binding

    def is_overdue(self, binding: Binding | None) -> bool:
        """Whether a conversation has waited for room for too long."""
        return binding is not None and not binding.host and binding.since <= self._clock() - SLICE_S

    def rank(self, binding: Binding, priority: int = 0) -> tuple[float, ...]:
        """Which of those that need room is the next, lowest first: who has waited for too long; then those of the highest priority, of them
        those of the owner that has least, and of them the one that began first, so that it ends first."""
        if self.is_overdue(binding):
            return 1, binding.since
        return 2, -priority, self.owned.get(binding.owner, 0), binding.began

    def has_room(self, host: str, size: int, room: Room, known: Binding | None = None) -> bool:
        """Whether a server can hold a conversation of `size` bytes, beside those that are at work or were just now. `known`: the
        conversation; when it has waited for too long, only those count whose time is not over."""
        taken = self._taken(host)
        count, size = taken[0] + 1, taken[1] + size
        if known is not None and known in self._on.get(host, ()):
            count, size = count - 1, size - known.size
        if room.fits(count, size):
            return True
        self.lineage.help_from_work(self._working, self._clock())
        now, overdue, stalled = self._clock(), self.is_overdue(known), self._is_stalled(host)
        for binding in self._on.get(host, ()):
            if binding.seen > now - SHORTEST_PAUSE_S and not overdue:
                break
            had_its_time = overdue and not binding.at_work and binding.since <= now - SLICE_S
            if binding is known or not (had_its_time or self._is_silent(binding, stalled=stalled)):
                continue
            count, size = count - 1, size - binding.size
            if room.fits(count, size):
                return True
        return False

    def _is_silent(self, binding: Binding, *, stalled: bool = False) -> bool:
        """Whether a conversation must make room for one that waits. `stalled`: for nothing is at work on its server."""
        pauses, seen = self.pauses.of(binding.owner), binding.seen if stalled else max(binding.seen, binding.helped)
        return not binding.at_work and seen <= self._clock() - (pauses.most_s if stalled else pauses.usual_s)

    def _is_stalled(self, host: str) -> bool:
        """Whether nothing is at work on a server, here or elsewhere, of whose turns others tell each second. What it holds may wait for
        agents of its own agents, which wait for room."""
        held = self._on.get(host, {})
        latest = max((each.seen for each in held), default=0.0)
        return self._taken(host)[0] == len(held) and latest <= self._clock() - SHORTEST_PAUSE_S and not any(each.at_work for each in held)

    def needing(self, hosts: Iterable[str]) -> tuple[int, int]:
        """How many conversations have memory of these servers that nobody else may have now, and their bytes: what is at work or was just
        now, and what the servers have still to read."""
        count, size = 0, 0
        self.lineage.help_from_work(self._working, self._clock())
        for host in hosts:
            silent = [binding.size for binding in self._on.get(host, ()) if self._is_silent(binding)]
            taken = self._taken(host)
            count, size = count + taken[0] - len(silent), size + taken[1] - sum(silent)
        return count, size

    def _taken(self, host: str) -> tuple[int, int]:
        """Conversations that a server holds or has still to read, and their bytes."""
        count, size = self.coming.to(host)
        return len(self._on.get(host, ())) + count, self._kept.get(host, 0) + size

    def works(self, binding: Binding | None, turns: int, *, in_line: bool = False) -> None:
        """So many turns of a conversation are at work, or wait `in_line`, more than before."""
        if binding is None:
            return
        self.lineage.helps(binding.parent, self._clock())
        binding.at_work += turns
        binding.in_line += turns if in_line else 0
        binding.paused = self._clock() if turns and not binding.at_work else None
        (self._working.add if binding.at_work else self._working.discard)(binding)
        if self._known.get(binding.name) is binding:
            binding.seen = self._clock()
            self._known.move_to_end(binding.name)
            if binding in self._on.get(binding.host, ()):
                self._on[binding.host].move_to_end(binding)

    def talk(self, turns: Iterable[Told]) -> Talk:
        """What other API servers must know of the conversations here. `turns`: what they were not told yet."""
        return Talk(list(turns), [binding.name for binding in self._working], dict(self.coming.here))

    def hear(self, talk: Talk, room: Room | None, age_s: float) -> None:
        """What another one told of its conversations `age_s` seconds ago."""
        for told in talk.turns:
            known = self._known.get(told.before) or self._known.get(told.name)
            turn = Turn((told.name,), told.name, told.size, owner=told.owner, parent=told.parent)
            if (binding := self.bind(turn, told.host, known, room)) is not None:
                binding.tokens = told.tokens
                binding.seen -= age_s
                binding.paused = None
                binding.since = min(binding.since, binding.seen)
        for name in talk.at_work:
            self.works(self._known.get(name), 0)

    def expire(self) -> None:
        """Forget the conversations that have ended."""
        oldest = self._clock() - self._lease_s
        while self._known and (first := next(iter(self._known.values()))).seen < oldest:
            self._drop(first)

    def _add(self, binding: Binding) -> Binding:
        self._known[binding.name] = binding
        if len(self._known) > self._most:
            self._drop(next(iter(self._known.values())))
        return binding

    def _drop(self, binding: Binding) -> None:
        del self._known[binding.name]
        self._lose(binding)
        if binding.owner not in self.owned:
            self.pauses.forget(binding.owner)

    def _make_room(self, host: str, room: Room, newest: Binding) -> None:
        """As the server itself does, which tells nobody. Where none is silent, the one that began last leaves the line: all of them in turn
        would push each other out, and none would end."""
        while not room.fits(len(self._on.get(host, ())), self._kept.get(host, 0)):
            idle = [each for each in self._on.get(host, ()) if each is not newest and each.at_work == each.in_line]
            if not idle:
                return
            self._lose(next((each for each in idle if not each.at_work), None) or max(idle, key=lambda each: each.began))

    def _lose(self, binding: Binding) -> None:
        """No server holds it any more."""
        if not binding.host:
            return
        self.held.add(binding.host, -binding.size)
        self.bound.add(binding.host, -1)
        self.owned.add(binding.owner, -binding.size)
        if binding in self._on.get(binding.host, ()):
            self._kept.add(binding.host, -binding.size)
            del self._on[binding.host][binding]
            if not self._on[binding.host]:
                del self._on[binding.host]
        binding.host, binding.since = "", self._clock()
