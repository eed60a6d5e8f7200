"""How many servers the fleet, or a model server, should have: up at once, down one at a time. Pure: looks and clocks are others'."""

from collections.abc import Sequence

from api_server.demand import Demand, lacking, needed


class Scaling:
    """Between `least` and `most` servers.

    It goes up at once to what is needed. It goes down by the last server, which is what a StatefulSet takes away. When fewer were needed
    for `lease_s`, the last one gets no new conversation. Those that it holds go on, and it goes when it had no request for `lease_s`: under
    no turn, and under no conversation whose lease has not ended.
    """

    def __init__(self, least: int, most: int, lease_s: float) -> None:
        self._least, self._most, self._lease_s = least, most, lease_s
        self._needed: dict[int, float] = {}
        """When so many servers were needed last."""
        self._seen = 0
        self.leaving = False
        """Whether the last server is to get no new conversation."""

    def wanted(self, demands: Sequence[Demand | None], current: int, there: int, last: str | None, now: float) -> int:
        """Servers that should be there now. `demands`: of every gateway, None of one that did not answer. `there`: pods that are
        there, also those that are going. `last`: address of the last server; empty when it has none, so that nobody can reach it; None when
        that is not known."""
        known = [demand for demand in demands if demand is not None]
        need = needed(known)
        if lacking(known, current):
            need = max(need, current if self.leaving else current + 1)
        need = min(max(need, self._least), self._most)
        if need > current:
            self._note(need, now)
            self.leaving = False
            return need
        # Whoever else brings the fleet up, a person or a deployment, gets it for the whole of a lease. So does a process that has just
        # started, which knows of no idle time before it.
        self._note(max(need, current if current > self._seen else 0), now)
        self._seen = current
        was_leaving, self.leaving = self.leaving, need < current and now - self._needed[current] >= self._lease_s
        # Every gateway has been told, and has heard of each request that came before.
        sure = was_leaving and self.leaving and there == current and known and len(known) == len(demands)
        if sure and last is not None and all(demand.quiet_s(last) >= self._lease_s for demand in known):
            self._seen = current - 1
            return current - 1
        return current

    def _note(self, servers: int, now: float) -> None:
        self._needed |= dict.fromkeys(range(servers + 1), now)
