"""Asks a Prometheus for the samples of counters, and adds up what they have counted, exactly.

PromQL's `increase` guesses: it stretches what it sees to the ends of its window, and what a counter had at its first sample is lost, which
is all of a key that was used once. Here a counter is what its samples say. It begins with nothing, so its first sample counts in full; each
further one counts by how much it is more than the one before. A sample that is less, or whose counter was made at another time, is of a
process that has started again, and counts in full. What was counted while nobody read it counts on the day of the next sample.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Annotated, Literal, NamedTuple

import httpx
from pydantic import BaseModel, Field, ValidationError

from infra.engine.errors import CommandError

LOOK_BACK_D = 7
"""Days. A counter whose last sample before the window is older counts as one that begins in it."""
_OF_A_PROCESS = ("cluster", "namespace", "pod")
"""Labels of a target that say which process it is; `instance` does where there is no `pod`. All others, such as `job`, may change while the
process and its counters go on, and two jobs may read one process."""
_TIMEOUT_S = 120.0
"""Prometheus' own for a query."""
_MOST_BYTES = 256 * 2**20
"""Of one answer."""

Labels = dict[str, str]
Identity = frozenset[tuple[str, str]]
"""Of a counter: its process, and what it counts."""


class Reading(NamedTuple):
    """What a counter said."""

    value: float
    made: float | None
    """When its process made it; None where nobody has kept that."""


class _Series(BaseModel):
    metric: dict[str, str]
    value: tuple[float, float] | None = None
    values: list[tuple[float, float]] = Field(default=[])


class _Result(BaseModel):
    kind: Annotated[Literal["vector", "matrix"], Field(alias="resultType")]
    result: list[_Series]


class _Answer(BaseModel):
    status: Literal["success"]
    data: _Result


class Prometheus:
    """One server's query API."""

    def __init__(self, url: str, client: httpx.Client) -> None:
        self._url = url
        self._client = client

    def latest(self, query: str, at: datetime) -> list[tuple[Labels, float]]:
        """Labels and value of each series at a time. Raises CommandError."""
        found = [(each.metric, each.value[1]) for each in self._ask(query, at) if each.value is not None]
        self._refuse_nonsense(value for _, value in found)
        return found

    def samples(self, query: str, at: datetime) -> list[tuple[Labels, list[tuple[float, float]]]]:
        """Labels of each series of a range, and the time and value of its samples in their order. Raises CommandError."""
        found = [(each.metric, each.values) for each in self._ask(query, at)]
        self._refuse_nonsense(value for _, each in found for _, value in each)
        return found

    def _ask(self, query: str, at: datetime) -> list[_Series]:
        form = {"query": query, "time": f"{at.timestamp():.3f}"}
        try:
            with self._client.stream("POST", f"{self._url}/api/v1/query", data=form, timeout=_TIMEOUT_S) as response:
                text = self._read(response)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            got = str(error) or type(error).__name__
            raise CommandError(f"PROMETHEUS: got no answer from {self._url} ({got}), want one; start it, or correct the address") from None
        if response.status_code in (401, 403):
            want = "want leave to read it; set PROMETHEUS_TOKEN, or PROMETHEUS_USER and PROMETHEUS_PASSWORD, in the environment"
            raise CommandError(f"PROMETHEUS: got {response.status_code} from {self._url}, {want}")
        try:
            return _Answer.model_validate_json(text).data.result
        except ValidationError:
            shown = " ".join(text[:200].decode(errors="replace").split())
            got = f"got {response.status_code} {shown!a}"
            raise CommandError(
                f"PROMETHEUS: {got} from {self._url}, want an answer of Prometheus' query API; correct the address"
            ) from None

    def _read(self, response: httpx.Response) -> bytes:
        text = bytearray()
        for chunk in response.iter_bytes():
            text += chunk
            if len(text) > _MOST_BYTES:
                raise CommandError(f"PROMETHEUS: got more than {_MOST_BYTES // 2**20} MiB from {self._url}, want less; ask for fewer DAYS")
        return bytes(text)

    def _refuse_nonsense(self, values: Iterable[float]) -> None:
        for value in values:
            if not math.isfinite(value) or value < 0:
                want = "want numbers from 0 on; does another program write there?"
                raise CommandError(f"PROMETHEUS: got {value} for a counter from {self._url}, {want}")


def increase(before: Reading | None, readings: Iterable[Reading]) -> float:
    """What a counter has counted from `before`, None when it begins, to the last of `readings`."""
    counted = 0.0
    for reading in readings:
        counted += reading.value - (before.value if before is not None and _goes_on(before, reading) else 0.0)
        before = reading
    return counted


def _goes_on(before: Reading, reading: Reading) -> bool:
    made_anew = before.made is not None and reading.made is not None and before.made != reading.made
    return reading.value >= before.value and not made_anew


class Counter:
    """A counter of the gateways, read as docs/keys.md says."""

    def __init__(self, prometheus: Prometheus, name: str, by: Sequence[str], matches: str) -> None:
        self._prometheus = prometheus
        self._by = by
        """Its own labels."""
        self._values, self._made = f"{name}_total{{{matches}}}", f"{name}_created{{{matches}}}"

    def increases(self, edges: Sequence[datetime]) -> Iterator[dict[tuple[str, ...], float]]:
        """What was counted between each two edges, by the counter's own labels. Raises CommandError.

        Prometheus is asked for the first and the last value of each counter, and whether it began anew: of a counter that did not, there is
        no more to know. Of the others, which are few, every sample is read.
        """
        before = self._readings(f"{LOOK_BACK_D}d", edges[0])
        for begin, end in itertools.pairwise(edges):
            window = seconds(begin, end)
            counted: dict[tuple[str, ...], float] = {}
            last = self._readings(window, end)
            first, anew = (self._first(window, end), self._anew(window, end)) if last else ({}, set[Identity]())
            for counter, reading in last.items():
                if counter in anew:
                    more = max(increase(before.get(counter), each) for each in self._every(counter, window, end, reading))
                else:
                    begun = Reading(min(first.get(counter, reading.value), reading.value), reading.made)
                    more = increase(before.get(counter), [begun, reading])
                own = dict(counter)
                labels = tuple(own.get(name, "") for name in self._by)
                counted[labels] = counted.get(labels, 0.0) + more
            before |= last
            yield counted

    def _readings(self, window: str, at: datetime) -> dict[Identity, Reading]:
        """The last of each counter."""
        made = self._highest(f"last_over_time({self._made}[{window}])", at)
        values = self._highest(f"last_over_time({self._values}[{window}])", at)
        return {counter: Reading(value, made.get(counter)) for counter, value in values.items()}

    def _highest(self, query: str, at: datetime) -> dict[Identity, float]:
        """Of two series of one counter the one that is further."""
        found: dict[Identity, float] = {}
        for labels, value in self._prometheus.latest(query, at):
            counter = self._identity(labels)
            found[counter] = max(value, found.get(counter, value))
        return found

    def _first(self, window: str, at: datetime) -> dict[Identity, float]:
        """The lowest value of each counter, which is its first where it never began anew."""
        found: dict[Identity, float] = {}
        for labels, value in self._prometheus.latest(f"min_over_time({self._values}[{window}])", at):
            counter = self._identity(labels)
            found[counter] = min(value, found.get(counter, value))
        return found

    def _anew(self, window: str, at: datetime) -> set[Identity]:
        """Counters whose process has started again."""
        queries = (f"resets({self._values}[{window}]) > 0", f"changes({self._made}[{window}]) > 0")
        return {self._identity(labels) for query in queries for labels, _ in self._prometheus.latest(query, at)}

    def _every(self, counter: Identity, window: str, at: datetime, last: Reading) -> list[list[Reading]]:
        """All readings of each series of a counter. All samples of one look at a process have one time."""
        exactly = ",".join(f"{name}={_quoted(value)}" for name, value in sorted(counter))
        ranges = (f"{each.removesuffix('}')},{exactly}}}[{window}]" for each in (self._values, self._made))
        values, made = (
            {frozenset((*labels.items(),)) - {("__name__", labels.get("__name__", ""))}: samples for labels, samples in found}
            for found in (self._prometheus.samples(each, at) for each in ranges)
        )
        readings = [[Reading(value, dict(made.get(series, [])).get(time)) for time, value in each] for series, each in values.items()]
        return readings or [[last]]

    def _identity(self, labels: Labels) -> Identity:
        process = (*_OF_A_PROCESS, *(() if labels.get("pod") else ("instance",)))
        return frozenset((name, labels[name]) for name in (*process, *self._by) if name in labels)


def seconds(begin: datetime, end: datetime) -> str:
    """The time between two as a duration of PromQL, which must not be empty."""
    return f"{max(1, math.ceil((end - begin).total_seconds()))}s"


def _quoted(text: str) -> str:
    """A string of PromQL, which has Go's escapes."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
