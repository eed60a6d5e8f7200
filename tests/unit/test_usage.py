"""`make usage`: what counters have counted, how it is shown, and what it says when it cannot know."""

import argparse
import contextlib
import csv
import http.server
import io
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from infra.engine.errors import CommandError
from infra.lifecycle import usage
from infra.lifecycle.deployment import Deployment
from infra.lifecycle.forwarding import forwarded
from infra.lifecycle.prometheus import Prometheus, Reading, increase
from infra.lifecycle.usage import COLUMNS, Usage, Used

FRIDAY = date(2026, 11, 27)
NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)


def readings(*values: float, made: float | None = None) -> list[Reading]:
    return [Reading(value, made) for value in values]


@pytest.mark.parametrize(
    ("before", "values", "counted"),
    [
        (None, [], 0),
        (None, [3], 3),
        (None, [3, 3, 7], 7),
        (Reading(5, None), [5], 0),
        (Reading(5, None), [5, 9], 4),
        (Reading(5, None), [2], 2),
        (Reading(5, None), [8, 1, 4, 0, 2], 3 + 1 + 3 + 0 + 2),
        (Reading(5, None), [], 0),
    ],
)
def test_a_counter_is_what_its_samples_say(before: Reading | None, values: list[float], counted: float) -> None:
    assert increase(before, readings(*values)) == counted


def test_a_process_that_counted_more_than_the_one_before_has_counted_all_of_it() -> None:
    """Its value alone looks as if the old one had gone on."""
    assert increase(Reading(5, 100.0), readings(9, made=200.0)) == 9
    assert increase(Reading(5, 100.0), readings(9, made=100.0)) == 4
    assert increase(Reading(5, None), readings(9, made=100.0)) == 4, "who has not kept it knows the values alone"
    assert increase(None, [Reading(2, 1.0), Reading(4, 1.0), Reading(4, 2.0), Reading(6, 2.0)]) == 4 + 6


def made(*rows: tuple[date, str, str, Used], days: int = 2, unread: frozenset[date] = frozenset()) -> Usage:
    wanted = [FRIDAY - timedelta(days=days - 1 - number) for number in range(days)]
    return Usage(wanted, {(day, key, model): used for day, key, model, used in rows}, unread)


TWO = made(
    (FRIDAY, "bob", "tiny:1", Used(1, 10, 0, 5, 0.25)),
    (FRIDAY - timedelta(days=1), "bob", "tiny:1", Used(2, 20, 8, 10, 1.5)),
    (FRIDAY, "alice", "tiny:1", Used(1, 7, 0, 0, 1)),
    (FRIDAY, "carol", "tiny:1", Used()),
)


def test_the_table_has_days_keys_and_sums() -> None:
    assert usage.table(TWO).splitlines() == [
        "day         key    model   requests  prompt  cached  completion  server s",
        "2026-11-26  bob    tiny:1         2      20       8          10     1.500",
        "2026-11-27  alice  tiny:1         1       7       0           0     1.000",
        "2026-11-27  bob    tiny:1         1      10       0           5     0.250",
        "total       alice                 1       7       0           0     1.000",
        "total       bob                   3      30       8          15     1.750",
        "total                             4      37       8          15     2.750",
    ]


def test_days_that_nobody_read_are_named() -> None:
    every = frozenset(FRIDAY - timedelta(days=number) for number in (0, 3, 4, 5))
    text = usage.table(made(days=7, unread=every))
    assert "not known: 2026-11-22 to 2026-11-24, 2026-11-27, when Prometheus read no gateway" in text
    assert text.splitlines()[1].split() == ["total", "0", "0", "0", "0", "0.000"]


def test_the_columns_of_the_csv_are_fixed() -> None:
    rows = list(csv.reader(io.StringIO(usage.comma_separated(TWO))))
    assert (
        rows[0]
        == ["day", "key", "model", "requests", "prompt_tokens", "cached_tokens", "completion_tokens", "server_seconds"]
        == list(COLUMNS)
    )
    assert rows[1:] == [
        ["2026-11-26", "bob", "tiny:1", "2", "20", "8", "10", "1.500"],
        ["2026-11-27", "alice", "tiny:1", "1", "7", "0", "0", "1.000"],
        ["2026-11-27", "bob", "tiny:1", "1", "10", "0", "5", "0.250"],
    ]


STRANGE = ["a,b", 'a"b', "a\nb", "a\x1b[2Jb", "ключ", "a b", "=1+1", "", "\u202eevil", "x" * 300]


@pytest.mark.parametrize("name", STRANGE)
def test_strange_names_are_one_cell_and_steer_no_terminal(name: str) -> None:
    found = made((FRIDAY, name, "tiny:1", Used(requests=1)))
    assert list(csv.reader(io.StringIO(usage.comma_separated(found), newline="")))[1][1] == name
    text = usage.table(found)
    assert len(text.splitlines()) == 4
    assert all(letter.isprintable() or letter == "\n" for letter in text)


@pytest.mark.parametrize("days", ["0", "-1", "", "x", "1.5", "367", "9" * 30, "\u0661", " 7"])
def test_days_are_a_number(days: str) -> None:
    with pytest.raises(CommandError, match=r"^DAYS: got .*, want a number from 1 to 366"):
        usage.days_of(days)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "prometheus",
        "ftp://x",
        "http://",
        "http://x:99999999",
        "http://x?query=1",
        "http://x#y",
        "https://[",
        "file:///etc/passwd",
        "a\nb",
    ],
)
def test_an_address_is_one(url: str) -> None:
    with pytest.raises(CommandError, match=r"^PROMETHEUS: got .*, want an address such as"):
        usage.address(url)


def test_an_address_has_no_login_which_lists_of_processes_would_show() -> None:
    with pytest.raises(CommandError, match=r"^PROMETHEUS: got an address with a login") as refused:
        usage.address("http://someone:hunter2@prometheus.example")
    assert "hunter2" not in str(refused.value)
    assert usage.address("https://prometheus.example/below/") == "https://prometheus.example/below"


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({"PROMETHEUS_TOKEN": "hunter2", "PROMETHEUS_USER": "x"}, "with PROMETHEUS_USER, want one login"),
        ({"PROMETHEUS_TOKEN": "hunter2\nx"}, "want a token"),
        ({"PROMETHEUS_TOKEN": "hunter2é"}, "want a token"),
    ],
)
def test_a_login_is_one_and_is_never_shown(environment: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(CommandError, match=name) as refused:
        usage.client(login=True)
    assert "hunter2" not in str(refused.value)
    assert "authorization" not in usage.client(login=False).headers, "our own Prometheus gets none"


@contextmanager
def answering(status: int, body: bytes, seen: list[Any] | None = None) -> Iterator[str]:
    """A server that says this to everything."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            if seen is not None:
                seen.append(self.headers["authorization"])
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                self.wfile.write(body)

        def log_message(self, format: str, *_: Any) -> None: ...  # noqa: A002 (http.server's name)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def ask(url: str) -> Usage:
    with usage.client(login=False) as session:
        return usage.read(Prometheus(url, session), "modelfleet", 2, NOW)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<html><title>A portal</title></html>"),
        (404, b"404 page not found"),
        (502, b""),
        (200, b"\x00\xff\xfe"),
        (200, b"{}"),
        (200, b"[]"),
        (200, b"null"),
        (200, b'{"status":"error","error":"out of order"}'),
        (503, b'{"status":"error","errorType":"timeout","error":"query timed out"}'),
        (200, b'{"status":"success","data":{"resultType":"scalar","result":[1,"1"]}}'),
        (200, b'{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[1,"many"]}]}}'),
        (200, b'{"status":"success","data":{"resultType":"vector","result":[{"metric":{"a":1},"value":[1,"1"]}]}}'),
        (200, b'{"status":"success","data":{"resultType":"vector","result":[{"value":[1,"1"]}]}}'),
        (200, b"[" * 100_000),
        (302, b""),
    ],
)
def test_what_is_no_prometheus_is_one_clear_error(status: int, body: bytes) -> None:
    with (
        answering(status, body) as url,
        pytest.raises(CommandError, match=rf"^PROMETHEUS: got {status} .*, want an answer of Prom") as refused,
    ):
        ask(url)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf", "-1"])
def test_what_no_counter_says_is_refused(value: str) -> None:
    body = f'{{"status":"success","data":{{"resultType":"vector","result":[{{"metric":{{"key":"a"}},"value":[1,"{value}"]}}]}}}}'
    with (
        answering(200, body.encode()) as url,
        pytest.raises(CommandError, match=r"^PROMETHEUS: got (nan|inf|-inf|-1.0) for a counter from"),
    ):
        ask(url)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_says_where_a_login_goes(status: int) -> None:
    with (
        answering(status, b"no") as url,
        pytest.raises(CommandError, match=rf"got {status} from .*; set PROMETHEUS_TOKEN, or PROMETHEUS_USER"),
    ):
        ask(url)


def test_the_login_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("PROMETHEUS_TOKEN", "a-token")
    empty = b'{"status":"success","data":{"resultType":"vector","result":[]}}'
    with answering(200, empty, seen) as url, usage.client(login=True) as session:
        found = usage.read(Prometheus(url, session), "modelfleet", 2, NOW)
    assert set(seen) == {"Bearer a-token"}
    assert found.unread == {*found.days}


def test_an_answer_without_an_end_is_not_read_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.lifecycle.prometheus._MOST_BYTES", 2**20)
    with answering(200, b" " * 2**22) as url, pytest.raises(CommandError, match=r"got more than 1 MiB from .*; ask for fewer DAYS"):
        ask(url)


def test_a_prometheus_that_is_not_there_is_one_clear_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(CommandError, match=rf"^PROMETHEUS: got no answer from {url} \(.*refused\), want one"):
            ask(url)


class NoCluster:
    def deployment(self) -> None:
        return None


def options(**changes: str) -> argparse.Namespace:
    return argparse.Namespace(**{"days": "2", "prometheus": "", "csv": "", "stack": "dev"} | changes)


def test_without_a_stack_another_prometheus_has_to_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster: Any = NoCluster()
    with pytest.raises(CommandError, match=r"^usage: got no stack, want one that is up; run make up, or name another"):
        usage.show(cluster, options())
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    empty = b'{"status":"success","data":{"resultType":"vector","result":[]}}'
    with answering(200, empty) as url, pytest.raises(CommandError, match=r"^usage: got no sample of a gateway .* of namespace modelfleet"):
        usage.show(cluster, options(prometheus=url))


def test_the_csv_is_printed_or_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    usage._write(TWO, "modelfleet", "1")
    assert capsys.readouterr().out == usage.comma_separated(TWO)
    usage._write(TWO, "modelfleet", str(tmp_path / "usage.csv"))
    assert (tmp_path / "usage.csv").read_text() == usage.comma_separated(TWO)
    assert capsys.readouterr().out == usage.table(TWO)


def forwards(tmp_path: Path, script: str) -> contextlib.AbstractContextManager[str]:
    """By a kubectl that does this."""
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f"#!/bin/sh\n{script}\n")
    kubectl.chmod(0o755)
    deployment = Deployment(stack="dev", context="west", kubeconfig="/k", state_dir=tmp_path)
    return forwarded(str(kubectl), deployment, "fleet", "prometheus", 9090)


def test_a_port_is_forwarded_for_as_long_as_it_is_needed(tmp_path: Path) -> None:
    said = f'echo "$@" > {tmp_path}/argv; echo $$ > {tmp_path}/pid'
    with forwards(tmp_path, f"{said}; echo 'Forwarding from 127.0.0.1:4242 -> 9090'; exec sleep 60") as url:
        assert url == "http://127.0.0.1:4242"
        pid = int((tmp_path / "pid").read_text())
        assert Path(f"/proc/{pid}").exists()
    assert not Path(f"/proc/{pid}").exists()
    assert (tmp_path / "argv").read_text().strip() == (
        "--kubeconfig /k --context west -n fleet port-forward service/prometheus :9090"
    )  # fmt: skip


def test_a_port_that_is_not_forwarded_is_one_clear_error(tmp_path: Path) -> None:
    script = """echo 'Error from server (NotFound): services "prometheus" not found' >&2; exit 1"""
    want = (
        r"got 'Error from server \(NotFound\): services \"prometheus\" not found', want a port of service/prometheus; look at kubectl get"
    )
    with pytest.raises(CommandError, match=want), forwards(tmp_path, script):
        raise AssertionError
