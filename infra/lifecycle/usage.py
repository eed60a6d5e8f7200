"""`make usage`: what each key has used, by day and model, from the metrics that a Prometheus has kept."""

import argparse
import csv
import io
import os
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from components.contract import PART_OF
from infra.engine.errors import CommandError
from infra.lifecycle.bring_up import say
from infra.lifecycle.prometheus import Counter, Prometheus, seconds
from infra.lifecycle.target import Target
from infra.program.settings.committed import stack_config

COLUMNS = ("day", "key", "model", "requests", "prompt_tokens", "cached_tokens", "completion_tokens", "server_seconds")
"""Of the CSV, in this order for ever; new ones come at the end."""
_HEADERS = ("day", "key", "model", "requests", "prompt", "cached", "completion", "server s")
_MOST_DAYS = 366
_ALIGNED = "<<<>>>>>"
"""Text to the left, numbers to the right."""


@dataclass
class Used:
    """By one key, of one model, on one day."""

    requests: float = 0.0
    """Of any status."""
    prompt: float = 0.0
    """Tokens, as all of the three."""
    cached: float = 0.0
    """A part of `prompt`."""
    completion: float = 0.0
    seconds: float = 0.0
    """That servers worked."""

    def add(self, other: "Used") -> None:
        for name in vars(self):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def anything(self) -> bool:
        return any(vars(self).values())

    @property
    def columns(self) -> tuple[str, ...]:
        return *(f"{value:.0f}" for value in (self.requests, self.prompt, self.cached, self.completion)), f"{self.seconds:.3f}"


@dataclass(frozen=True)
class Usage:
    """Of a number of days, which end with today."""

    days: Sequence[date]
    rows: dict[tuple[date, str, str], Used] = field(default_factory=dict)
    """Day, key and model to what was used."""
    unread: frozenset[date] = frozenset()
    """Days of which Prometheus has not one sample of a gateway: what was used then is not known."""

    @property
    def total(self) -> Used:
        total = Used()
        for each in self.rows.values():
            total.add(each)
        return total

    def in_order(self) -> list[tuple[tuple[date, str, str], Used]]:
        return sorted((key, used) for key, used in self.rows.items() if used.anything)


def days_of(wanted: str) -> int:
    """DAYS as a number. Raises CommandError."""
    if not wanted.isascii() or not wanted.isdigit() or not 1 <= int(wanted[:9]) <= _MOST_DAYS:
        raise CommandError(f"DAYS: got {wanted[:80]!r}, want a number from 1 to {_MOST_DAYS}; today is the last of them")
    return int(wanted)


def read(prometheus: Prometheus, namespace: str, days: int, now: datetime) -> Usage:
    """What the gateways of a namespace have counted in the last days of UTC, today with them. Raises CommandError."""
    today = now.astimezone(UTC).date()
    usage = Usage([today - timedelta(days=days - 1 - number) for number in range(days)])
    edges = [datetime(day.year, day.month, day.day, tzinfo=UTC) for day in usage.days] + [now]
    # A gateway that is no pod has no namespace.
    matches = f'namespace=~"|{namespace}"'

    def used(day: date, key: str, model: str) -> Used:
        return usage.rows.setdefault((day, key, model), Used())

    def each(name: str, *by: str) -> Iterable[tuple[date, tuple[str, ...], float]]:
        counter = Counter(prometheus, name, by, matches)
        for day, counted in zip(usage.days, counter.increases(edges), strict=True):
            yield from ((day, labels, value) for labels, value in counted.items())

    for day, (key, model, _), value in each("api_server_key_requests", "key", "model", "status"):
        used(day, key, model).requests += value
    for day, (key, model, kind), value in each("api_server_key_tokens", "key", "model", "kind"):
        if kind in ("prompt", "cached", "completion"):
            row = used(day, key, model)
            setattr(row, kind, getattr(row, kind) + value)
    for day, (key, model), value in each("api_server_key_server_seconds", "key", "model"):
        used(day, key, model).seconds += value
    windows = zip(usage.days, edges[:-1], edges[1:], strict=True)
    unread = {day for day, begin, end in windows if not _was_read(prometheus, matches, begin, end)}
    return Usage(usage.days, usage.rows, frozenset(unread))


def _was_read(prometheus: Prometheus, matches: str, begin: datetime, end: datetime) -> bool:
    """Whether there is a sample of a gauge that every gateway has."""
    gauge = f"api_server_reserved_bytes{{{matches}}}[{seconds(begin, end)}]"
    return bool(prometheus.latest(f"count(present_over_time({gauge}))", end))


def table(usage: Usage) -> str:
    """For people: a row for each day, key and model, the sums of the keys, and of all."""
    rows = [_HEADERS]
    rows += [(day.isoformat(), _shown(key), _shown(model), *used.columns) for (day, key, model), used in usage.in_order()]
    sums: dict[str, Used] = {}
    for (_, key, _), used in usage.in_order():
        sums.setdefault(key, Used()).add(used)
    rows += [("total", _shown(key), "", *used.columns) for key, used in sorted(sums.items())]
    rows += [("total", "", "", *usage.total.columns)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADERS))]
    lines = ["  ".join(f"{cell:{sign}{width}}" for cell, sign, width in zip(row, _ALIGNED, widths, strict=True)) for row in rows]
    if usage.unread:
        lines += ["", f"not known: {', '.join(_spans(usage))}, when Prometheus read no gateway"]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _spans(usage: Usage) -> list[str]:
    """Days that nobody read, those in a row as one."""
    spans: list[list[date]] = []
    for day in usage.days:
        if day in usage.unread:
            if spans and spans[-1][-1] == day - timedelta(days=1):
                spans[-1].append(day)
            else:
                spans.append([day])
    return [f"{days[0]} to {days[-1]}" if len(days) > 1 else str(days[0]) for days in spans]


def _shown(name: str) -> str:
    """A name as it may stand on a terminal."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in name)


def comma_separated(usage: Usage) -> str:
    """For programs: COLUMNS, and a row for each day, key and model. Times are UTC. No sums."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((day.isoformat(), key, model, *used.columns) for (day, key, model), used in usage.in_order())
    return text.getvalue()


def address(url: str) -> str:
    """PROMETHEUS as the address that queries go below. Raises CommandError."""
    try:
        found = urlsplit(url)
        well = found.scheme in ("http", "https") and bool(found.hostname) and found.port != 0
    except ValueError:
        found, well = urlsplit(""), False
    if found.username is not None or found.password is not None:
        want = "want the address alone; set PROMETHEUS_USER and PROMETHEUS_PASSWORD in the environment, which no list of processes shows"
        raise CommandError(f"PROMETHEUS: got an address with a login, {want}")
    if not well or found.query or found.fragment:
        raise CommandError(f"PROMETHEUS: got {url[:80]!r}, want an address such as https://prometheus.example.com; correct it")
    return url.rstrip("/")


def client(*, login: bool) -> httpx.Client:
    """With the login of the environment, for a Prometheus of somebody else. Raises CommandError."""
    token, user, password = (os.environ.get(f"PROMETHEUS_{name}", "") if login else "" for name in ("TOKEN", "USER", "PASSWORD"))
    if token and not re.fullmatch(r"[\x21-\x7e]+", token):
        raise CommandError("PROMETHEUS_TOKEN: got something else than printable characters in one line, want a token; correct it")
    if token and user:
        raise CommandError("PROMETHEUS_TOKEN: got it with PROMETHEUS_USER, want one login; unset one of them")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    # Ours is behind a port of this machine; another may be behind the proxy that the environment names.
    return httpx.Client(headers=headers, auth=(user, password) if user else None, trust_env=login)


def show(cluster: Target, options: argparse.Namespace) -> None:
    """Print the table; or the CSV, with `options.csv` 1; with any other, write the CSV there, too.

    Raises CommandError, and OSError for a file that cannot be written.
    """
    days, other = days_of(options.days), address(options.prometheus) if options.prometheus else ""
    deployment = cluster.deployment()
    if other:
        reached = nullcontext(other)
        section = stack_config(options.stack).get("modelfleet:cluster", {})
        namespace = deployment.namespace if deployment else str(section.get("namespace", PART_OF))
    elif deployment is None:
        raise CommandError("usage: got no stack, want one that is up; run make up, or name another Prometheus with PROMETHEUS=address")
    else:
        reached, namespace = cluster.prometheus(deployment), deployment.namespace
    with client(login=bool(other)) as session, reached as where:
        usage = read(Prometheus(where, session), namespace, days, datetime.now(UTC))
    _write(usage, namespace, options.csv)


def _write(usage: Usage, namespace: str, target: str) -> None:
    if len(usage.unread) == len(usage.days):
        from_, to = usage.days[0], usage.days[-1]
        want = f"want some of {from_} to {to}; does it read the gateways of namespace {namespace}, and since when?"
        raise CommandError(f"usage: got no sample of a gateway from Prometheus, {want}")
    if target == "1":
        sys.stdout.write(comma_separated(usage))
        return
    if target:
        Path(target).write_text(comma_separated(usage))
        say(f"usage: {len(usage.in_order())} rows are in {target}")
    sys.stdout.write(table(usage))
