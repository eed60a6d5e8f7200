"""What the rule for the next server does and costs: it beside those of others in a simulated fleet, and its time with many servers and many
conversations. Writes bench/results/picking.json.

A minute, beside nothing else:
    python -m bench.picking
"""

import os
import random
import sys
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

from api_server.address import Address
from api_server.bindings import MOST, Bindings
from api_server.place import Place, Wanted
from api_server.sessions import Turn
from api_server.settings import Route
from api_server.upstreams import Upstream
from bench import simulator
from bench.conditions import beside, keep
from bench.gateway import percentile

SERVERS = 4
AGENTS = (12, 24, 48, 96)
MEMORY = {"ample": 4_000_000, "short": 1_500_000}
"""Bytes of prompts that a server keeps: those of 20 conversations, and of 8."""
GATEWAYS: dict[str, Callable[[], simulator.Gateway]] = {
    "ours": simulator.Ours,
    "ours without admission": lambda: simulator.Ours(knows_memory=False),
    "ours, first come, first served": lambda: simulator.Ours(oldest_first=False),
    "ours of before: least busy": simulator.LeastBusy,
    "consistent hash (nginx)": simulator.ConsistentHash,
    "bounded hash (KubeAI)": simulator.BoundedHash,
    "random (LiteLLM)": simulator.Random,
}
DIES_S, AFTER_S = 1800.0, 300.0
"""When one of two gateways dies, and the seconds before and after it that are compared."""
REPLICAS, CONVERSATIONS, TURNS = 1000, 100_000, 40_000
AT_WORK = 500
"""Turns at once."""


def fleets() -> dict[str, Any]:
    """For each memory and number of agents, each gateway's simulated hour."""
    results: dict[str, Any] = {}
    for memory, size in MEMORY.items():
        for agents in AGENTS:
            outcomes = {name: simulator.Hour(make(), SERVERS, agents, size).run() for name, make in GATEWAYS.items()}
            results[f"{memory} memory, {agents} agents"] = {
                name: {
                    "turns_a_minute": round(found.turns_a_minute, 1),
                    "warm": round(found.warm, 3),
                    "first_word_p50_s": round(percentile(found.first_s, 0.5), 1),
                    "first_word_p99_s": round(percentile(found.first_s, 0.99), 1),
                    "most_by_mean": round(found.most_by_mean, 2),
                }
                for name, found in outcomes.items()
            }
    return results


def death() -> dict[str, Any]:
    """What a fleet loses when one of two gateways dies, with what they tell each other and without."""
    results: dict[str, Any] = {}
    for name, agree in (("they agree", True), ("each alone", False)):
        for when, counted in (("before", (DIES_S - AFTER_S, DIES_S)), ("after", (DIES_S, DIES_S + AFTER_S))):
            gateway = simulator.Pair(agree=agree, dies_s=DIES_S)
            found = simulator.Hour(gateway, SERVERS, AGENTS[1], MEMORY["ample"], counted=counted).run()
            figures = {"turns_a_minute": round(found.turns_a_minute, 1), "warm": round(found.warm, 3)}
            results[f"{name}, {when}"] = figures | {"first_word_p99_s": round(percentile(found.first_s, 0.99), 1)}
    return results


def decisions() -> dict[str, Any]:
    """Microseconds of CPU for each decision, of turns whose server is known, and of others."""
    route = Route(url="http://fleet:1", engine="ollama", context_length=131_072)
    fleet = Upstream("http://fleet:1", 64)
    for number in range(REPLICAS):
        host = f"10.0.{number // 250}.{number % 250}"
        fleet.addresses[host] = Address(host, 1, store={"m:latest": {}}, loaded={"m:latest": {}})
    numbers = random.Random(1)  # noqa: S311
    names = [numbers.randbytes(16) for _ in range(CONVERSATIONS)]
    took: dict[str, list[float]] = {"known": [], "not known": []}
    at_work: list[Place] = []
    for number in range(TURNS):
        # Most turns are of conversations that go on, and one in fifty begins one.
        name = names[-1 - number] if number < 2000 or number % 50 == 0 else names[-1 - numbers.randrange(2000)]
        wanted = Wanted(route, "m", Turn((name,), name, 100_000 + 10 * number))
        started = time.thread_time()
        place = fleet.take(wanted)
        spent = time.thread_time() - started
        assert place is not None  # noqa: S101 (there are more places than turns at work)
        if number >= 2000:
            took["known" if place.reason == "bound" else "not known"].append(spent)
        fleet.worked(place)
        at_work.append(place)
        if len(at_work) > AT_WORK:
            fleet.release(at_work.pop(numbers.randrange(AT_WORK)))
    every = [*took["known"], *took["not known"]]
    return {
        kind: {"count": len(each), **{f"p{share}_us": round(1e6 * percentile(each, share / 100), 1) for share in (50, 99)}}
        for kind, each in {**took, "all": every}.items()
    }


def table() -> dict[str, Any]:
    """Memory of the table of conversations, when more come than it keeps."""
    tracemalloc.start()
    kept = Bindings()
    for number in range(CONVERSATIONS):
        name = number.to_bytes(16)
        kept.bind(Turn((name,), name, 100_000), f"10.0.0.{number % 250}", None)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {"conversations": CONVERSATIONS, "kept": len(kept), "most": MOST, "mib": round(used / 2**20, 1)}


def main() -> int:
    load_before = os.getloadavg()[0]
    results = {"simulated fleets": fleets(), "one of two gateways dies": death(), "decisions": decisions(), "table": table()}
    shape = {name.lower(): getattr(simulator, name) for name in ("READ", "ANSWER_S", "SLOTS", "SYSTEM", "TURNS", "GROWTH", "TOOLS_S")}
    record = beside("python -m bench.picking", load_before, {}) | {
        "sizes": {
            "servers": SERVERS,
            "memory": MEMORY,
            "replicas": REPLICAS,
            "at_work": AT_WORK,
            "dies_s": DIES_S,
            "after_s": AFTER_S,
            **shape,
        },
        "results": results,
    }
    keep("picking", record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
