"""`make usage` with Debian's Prometheus: what it has read of a real gateway, and histories that no counter is easy to read in."""

import csv
import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from components import PrometheusArgs, ResourceArgs
from components.alerts import rule_groups
from components.prometheus import flags
from devcluster import system_images
from infra import ROOT
from infra.engine.errors import CommandError
from infra.lifecycle import usage
from infra.lifecycle.prometheus import Prometheus
from infra.lifecycle.usage import Usage, Used
from tests.service import prometheus
from tests.service.conftest import SCRIPT, ApiServerFactory, start_api_server
from tests.service.processes import Service, free_port
from tests.service.test_named_keys import ALICE, BOB, chat, grant, stream, wait_until, write

GOLDEN = ROOT / "tests" / "golden" / "dev" / "configmap-prometheus-config.yaml"
NOW = datetime.now(UTC)
TODAY = NOW.date()


def rendered(work: Path) -> Path:
    """The configuration that the dev stack gets, with its rules beside it."""
    for name, text in yaml.safe_load(GOLDEN.read_text())["data"].items():
        (work / name).write_text(text)
    return work / "prometheus.yaml"


def test_prometheus_takes_the_configuration_and_the_rules(tmp_path: Path) -> None:
    done = prometheus.promtool("check", "config", rendered(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    count = sum(len(group["rules"]) for group in rule_groups())
    assert f"{count} rules found" in done.stdout + done.stderr
    assert prometheus.promtool("check", "rules", tmp_path / "rules.yaml").returncode == 0


def test_the_check_notices_what_prometheus_would_not_take(tmp_path: Path) -> None:
    config = rendered(tmp_path)
    (tmp_path / "rules.yaml").write_text((tmp_path / "rules.yaml").read_text().replace("absent(", "absent((", 1))
    assert prometheus.promtool("check", "config", config).returncode != 0
    rendered(tmp_path)
    config.write_text(config.read_text().replace("type: AAAA", "type: BBBB"))
    assert prometheus.promtool("check", "config", config).returncode != 0


def test_prometheus_takes_the_flags(tmp_path: Path) -> None:
    """With what the stack gives it, but for the places. Nothing here answers for the names of its Services."""
    small = ResourceArgs(cpu="20m", memory="256Mi")
    args = PrometheusArgs(
        namespace="n", image="i", storage_class="c", size="1Gi", retention_bytes=858993459, retention_days=40, retain=False, resources=small
    )
    retention = [each for each in flags(args) if each.startswith("--storage.tsdb.retention")]
    places = {"--config.file", "--storage.tsdb.path", "--web.listen-address"}
    assert {each.partition("=")[0] for each in flags(args) if each not in retention} == places
    with prometheus.running(tmp_path, yaml.safe_load(rendered(tmp_path).read_text()), retention=retention) as service:
        service.wait_for("/-/healthy")
        about = httpx.get(f"{service.url}/api/v1/status/runtimeinfo", timeout=10, trust_env=False).json()["data"]
    assert about["storageRetention"] == "40d or 819MiB204KiB819B"


@pytest.fixture
def fleet(tmp_path: Path, ollama: Service) -> Iterator[Any]:
    """A function that starts a gateway at one address, and ends it with the block; and where its metrics are."""
    write(tmp_path, alice=grant(ALICE), bob=grant(BOB))
    routes: dict[str, dict[str, object]] = {
        name: {"url": ollama.url, "model": name, "engine": "ollama", "context_length": 2048} for name in ("tiny:1", "slow:1")
    }
    port, metrics_port = free_port(), free_port()

    @contextmanager
    def gateway() -> Iterator[Service]:
        with ExitStack() as stack:
            yield start_api_server(stack, tmp_path, routes, PORT=str(port), METRICS_PORT=str(metrics_port))

    yield gateway, f"127.0.0.1:{metrics_port}"


def reading(service: Service, days: int = 1, now: datetime | None = None, namespace: str = "modelfleet") -> Usage:
    with usage.client(login=False) as client:
        return usage.read(Prometheus(service.url, client), namespace, days, now or datetime.now(UTC))


def asked(gateway: Service, key: str, times: int) -> Used:
    """What the servers said that so many chats took."""
    total = Used()
    for _ in range(times):
        answer = chat(gateway, key)
        assert answer.json()["choices"][0]["message"]["content"] == SCRIPT
        said = answer.json()["usage"]
        total.add(Used(1, said["prompt_tokens"], 0, said["completion_tokens"]))
    return total


def scraped_twice(gateway: Service, service: Service) -> None:
    """The gateway knows by then that it is read again and again, and waits for the next time before it ends."""
    begun = datetime.now(UTC)

    def often() -> bool:
        window = f"{(datetime.now(UTC) - begun).total_seconds():.0f}s"
        with usage.client(login=False) as client:
            found = Prometheus(service.url, client).latest(f"sum(count_over_time(api_server_reserved_bytes[{window}]))", datetime.now(UTC))
        return bool(found) and found[0][1] >= 2

    time.sleep(2)
    wait_until(often, 20)


def compared(found: Used, wanted: Used) -> None:
    """But for the seconds, which nobody else has measured."""
    assert (found.requests, found.prompt, found.completion) == (wanted.requests, wanted.prompt, wanted.completion)


def test_every_request_is_counted_once_also_those_of_a_gateway_that_ended_at_once(fleet: Any, tmp_path: Path) -> None:
    """The second gateway has counted more than the first one had before anybody looks: its values alone say that the first one goes on."""
    gateway, address = fleet
    begun = time.monotonic()
    with prometheus.running(tmp_path, prometheus.scraping(address)) as service:
        with gateway() as first:
            scraped_twice(first, service)
            wanted = {"alice": asked(first, ALICE, 3), "bob": asked(first, BOB, 1)}
            first.process.send_signal(signal.SIGTERM)
            assert first.ended() == 0
        with gateway() as second:
            for key, name, times in ((ALICE, "alice", 7), (BOB, "bob", 4)):
                wanted[name].add(asked(second, key, times))
            took = time.monotonic() - begun
            wait_until(lambda: reading(service).total.requests >= 15, 20)
            scraped_twice(second, service)
            found = reading(service)
    assert {key for _, key, _ in found.rows} == {"alice", "bob"}
    for name, used in wanted.items():
        row = found.rows[TODAY if TODAY in found.days else found.days[0], name, "tiny:1"]
        compared(row, used)
        assert 0 < row.seconds < took
    assert found.unread == frozenset()


def test_a_stream_that_its_client_left_and_a_refusal_are_counted(fleet: Any, tmp_path: Path) -> None:
    gateway, address = fleet
    with prometheus.running(tmp_path, prometheus.scraping(address)) as service, gateway() as server:
        began = time.monotonic()
        with stream(server, ALICE, 1500) as lines:
            for _ in range(20):
                next(lines)
            time.sleep(0.5)
        lasted = time.monotonic() - began
        assert chat(server, BOB, "nobody:1").status_code == 404
        wait_until(lambda: reading(service).total.requests >= 2, 20)
        wait_until(lambda: reading(service).total.seconds > 0, 20)
        rows = {(key, model): used for (_, key, model), used in reading(service).rows.items()}
    assert rows["alice", "slow:1"].requests == 1
    assert 10 <= rows["alice", "slow:1"].completion < 1500
    assert 0.5 < rows["alice", "slow:1"].seconds <= lasted + 1
    assert (rows["bob", "unknown"].requests, rows["bob", "unknown"].prompt) == (1, 0)


def test_the_command_prints_what_prometheus_knows(fleet: Any, tmp_path: Path) -> None:
    gateway, address = fleet
    with prometheus.running(tmp_path, prometheus.scraping(address)) as service, gateway() as server:
        used = asked(server, ALICE, 2)
        wait_until(lambda: reading(service).total.requests >= 2, 20)
        environment = {**os.environ, "NO_PROXY": "127.0.0.1", "XDG_STATE_HOME": str(tmp_path / "state")}
        argv = [sys.executable, "-m", "infra.lifecycle", "usage", f"--prometheus={service.url}", "--csv=1", "--days=1"]
        done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    (row,) = csv.DictReader(io.StringIO(done.stdout))
    assert (row["key"], row["model"], row["requests"]) == ("alice", "tiny:1", "2")
    assert (row["prompt_tokens"], row["completion_tokens"]) == (f"{used.prompt:.0f}", f"{used.completion:.0f}")


def test_a_gateway_that_nobody_reads_ends_at_once(api_server: ApiServerFactory, ollama: Service) -> None:
    gateway = api_server({"tiny:1": {"url": ollama.url, "model": "tiny:1", "engine": "ollama", "context_length": 2048}}, DRAIN_DELAY_S="0")
    begun = time.monotonic()
    gateway.process.send_signal(signal.SIGTERM)
    assert gateway.ended() == 0
    assert time.monotonic() - begun < 5


def test_a_gateway_waits_no_longer_than_its_reader_usually_does(fleet: Any, tmp_path: Path) -> None:
    gateway, address = fleet
    with gateway() as server:
        with prometheus.running(tmp_path, prometheus.scraping(address)) as service:
            scraped_twice(server, service)
        begun = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.ended() == 0
        assert time.monotonic() - begun < 10


# Histories: (day before today, hour, value) of one counter, for what is not lived through in a test.
STEP_S = 600


class History:
    """Samples of gateways' counters, every ten minutes."""

    def __init__(self) -> None:
        self.samples: list[tuple[str, Mapping[str, str], float, float]] = []

    def counter(
        self, begin: datetime, end: datetime, value: Any, *, name: str = "requests", made: float | None = None, **labels: str
    ) -> None:
        """From one time to another; `value` of the hours since the first. The gateway was read then, too."""
        own = {"key": "alice", "model": "tiny:1", "instance": "10.0.0.1:9464", "namespace": "modelfleet"}
        own |= {"requests": {"status": "200"}, "tokens": {"kind": "prompt"}, "server_seconds": {}}[name] | labels
        # What was counted until midnight is of the day before.
        at = begin + timedelta(seconds=1)
        while at < end:
            hours = (at - begin).total_seconds() / 3600
            self.samples.append((f"api_server_key_{name}_total", own, float(value(hours)), at.timestamp()))
            if made is not None:
                self.samples.append((f"api_server_key_{name}_created", own, made, at.timestamp()))
            target = {each: own[each] for each in ("instance", "namespace", "pod", "job") if each in own}
            self.samples.append(("api_server_reserved_bytes", target, 0.0, at.timestamp()))
            at += timedelta(seconds=STEP_S)


def day(before: int, hour: float = 0) -> datetime:
    return datetime(TODAY.year, TODAY.month, TODAY.day, tzinfo=UTC) - timedelta(days=before) + timedelta(hours=hour)


def told(tmp_path: Path, history: History, days: int = 5) -> Usage:
    """What usage reads of it at the beginning of today: of `days` whole days, and of today nothing."""
    unique = {(name, frozenset(labels.items()), at): (name, labels, value, at) for name, labels, value, at in history.samples}
    prometheus.remember(tmp_path, [*unique.values()])
    with prometheus.running(tmp_path, {"global": {}}) as service:
        return reading(service, days + 1, day(0))


def requests(found: Usage, key: str = "alice", model: str = "tiny:1") -> list[float]:
    """By day, the first of them first; without today."""
    return [found.rows.get((each, key, model), Used()).requests for each in found.days[:-1]]


def test_days_are_cut_at_midnight_utc_and_nothing_is_lost_between_them(tmp_path: Path) -> None:
    history = History()
    history.counter(day(4, 6), day(1, 18), lambda hours: int(10 * hours), pod="a")
    found = told(tmp_path, history)
    # The last sample of a day is that of 23:50, and what comes after it is the next day's.
    assert sum(requests(found)) == int(10 * (3 * 24 + 12 - STEP_S / 3600))
    assert requests(found)[0] == 0
    assert requests(found)[2] == requests(found)[3] == 240
    assert found.unread == {day(5).date(), TODAY}


def test_what_was_counted_before_the_window_is_not_counted_again(tmp_path: Path) -> None:
    history = History()
    history.counter(day(6), day(1), lambda hours: 1000 + hours, pod="a")
    assert requests(told(tmp_path, history, 2)) == [24, 0]


def test_a_key_that_was_used_once_has_been_used_once(tmp_path: Path) -> None:
    """`increase` says 0 for a counter whose first sample is its last value."""
    history = History()
    history.counter(day(2, 10), day(2, 12), lambda _: 1, pod="a")
    history.counter(day(2, 13), day(2, 13.1), lambda _: 1, pod="b", key="bob")
    found = told(tmp_path, history)
    assert (requests(found), requests(found, "bob")) == ([0, 0, 0, 1, 0], [0, 0, 0, 1, 0])


def test_gateways_that_come_and_go_and_begin_anew_are_added_up(tmp_path: Path) -> None:
    history = History()
    history.counter(day(4), day(3, 12), lambda hours: hours // 1, pod="a")
    history.counter(day(3, 12), day(1), lambda hours: hours // 1, pod="b")
    # The container of c starts again in the middle of a day, and at midnight.
    for begin, end in ((day(3, 1), day(3, 5)), (day(3, 5), day(2)), (day(2), day(2, 3))):
        history.counter(begin, end, lambda hours: 1 + hours // 1, pod="c", made=begin.timestamp())
    found = told(tmp_path, history)
    of_a_and_b = 35 + 35
    assert sum(requests(found)) == of_a_and_b + 4 + 19 + 3
    assert requests(found)[4] == 0


def test_a_process_that_has_counted_more_than_the_one_before_is_noticed(tmp_path: Path) -> None:
    history = History()
    history.counter(day(3, 1), day(3, 5), lambda _: 5, pod="a", made=1.5)
    history.counter(day(3, 5), day(2), lambda _: 9, pod="a", made=2.5)
    history.counter(day(2), day(2, 5), lambda _: 11, pod="a", made=3.5)
    assert requests(told(tmp_path, history)) == [0, 0, 14, 11, 0]


def test_what_nobody_read_counts_when_it_is_read_again_and_the_days_are_named(tmp_path: Path) -> None:
    history = History()
    history.counter(day(5), day(4, 12), lambda hours: hours // 1, pod="a")
    history.counter(day(1, 6), day(1, 9), lambda _: 100, pod="a")
    found = told(tmp_path, history)
    assert requests(found) == [23, 12, 0, 0, 65]
    assert found.unread == {day(3).date(), day(2).date(), TODAY}


def test_a_gateway_that_two_jobs_read_or_that_gets_another_label_counts_once(tmp_path: Path) -> None:
    history = History()
    for job in ("pods", "services"):
        history.counter(day(3), day(2), lambda hours: hours // 1, pod="a", job=job)
    history.counter(day(2), day(1), lambda hours: 24 + hours // 1, pod="a", job="renamed")
    assert requests(told(tmp_path, history)) == [0, 0, 23, 24, 0]


def test_two_jobs_and_a_restart(tmp_path: Path) -> None:
    history = History()
    for job in ("pods", "services"):
        history.counter(day(3), day(3, 10), lambda hours: hours // 1, pod="a", job=job)
        history.counter(day(3, 10), day(2), lambda hours: hours // 1, pod="a", job=job)
    assert requests(told(tmp_path, history)) == [0, 0, 9 + 13, 0, 0]


def test_another_fleet_in_the_same_prometheus_is_another_ones(tmp_path: Path) -> None:
    history = History()
    history.counter(day(2), day(1), lambda hours: hours // 1, pod="a")
    history.counter(day(2), day(1), lambda _: 1000, pod="a", namespace="team-b")
    history.counter(day(2), day(1), lambda _: 2, namespace="", key="bob")
    found = told(tmp_path, history)
    assert (sum(requests(found)), sum(requests(found, "bob"))) == (23, 2)


@pytest.mark.parametrize("name", ['say "hi"', "back\\slash", "new\nline", "ключ", "a{b}", "a,b", "$(id)", "{{x}}"])
def test_keys_with_strange_names_are_read_also_sample_by_sample(tmp_path: Path, name: str) -> None:
    history = History()
    for begin, end in ((day(2), day(2, 5)), (day(2, 5), day(2, 10))):
        history.counter(begin, end, lambda hours: 1 + hours // 1, pod="a", key=name)
    found = told(tmp_path, history)
    assert requests(found, name) == [0, 0, 0, 10, 0]
    assert usage.table(found)


def test_tokens_and_seconds_stand_beside_the_requests(tmp_path: Path) -> None:
    history = History()
    history.counter(day(2), day(1), lambda _: 2, pod="a")
    for kind, value in (("prompt", 40), ("cached", 30), ("completion", 7), ("of-a-newer-gateway", 99)):
        history.counter(day(2), day(1), lambda _, value=value: value, name="tokens", pod="a", kind=kind)
    history.counter(day(2), day(1), lambda hours: hours / 8, name="server_seconds", pod="a")
    row = told(tmp_path, history).rows[day(2).date(), "alice", "tiny:1"]
    assert (row.requests, row.prompt, row.cached, row.completion) == (2, 40, 30, 7)
    assert row.seconds == pytest.approx((24 * 3600 - STEP_S + 1) / 3600 / 8)


def test_prometheus_itself_may_start_again(tmp_path: Path) -> None:
    history = History()
    history.counter(day(2), day(1), lambda hours: hours // 1, pod="a")
    first = told(tmp_path, history)
    with prometheus.running(tmp_path, {"global": {}}) as service:
        assert reading(service, 6, day(0)).rows == first.rows


def test_a_login_of_the_environment_opens_and_a_wrong_one_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The password is `test`. Source of the hash: Prometheus' guide to basic auth.
    hashed = "$2b$12$hNf2lSsxfm0.i4a.1kVpSOVyBCfIB51VRjgBUyv6kdnyTlgWj81Ay"
    (tmp_path / "web.yaml").write_text(yaml.safe_dump({"basic_auth_users": {"reader": hashed}}))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("PROMETHEUS_USER", "reader")
    monkeypatch.setattr(Service, "wait_for", lambda service, path: wait_until(lambda: b"ready" in service.log.read_bytes(), 30))
    with prometheus.running(tmp_path, {"global": {}}, f"--web.config.file={tmp_path / 'web.yaml'}") as service:
        for password, well in (("wrong", False), ("test", True)):
            monkeypatch.setenv("PROMETHEUS_PASSWORD", password)
            with usage.client(login=True) as client:
                asks = Prometheus(service.url, client)
                if well:
                    assert asks.latest("vector(1)", NOW)
                else:
                    with pytest.raises(CommandError, match=r"got 401 .*; set PROMETHEUS_TOKEN, or PROMETHEUS_USER") as refused:
                        asks.latest("vector(1)", NOW)
                    assert "wrong" not in str(refused.value)


def test_the_embedded_image_has_the_server_and_its_licence_over_the_base(tmp_path: Path) -> None:
    layer = system_images.prometheus_layer()
    with tarfile.open(layer.path) as archive:
        files = {each.name for each in archive.getmembers() if each.isfile()}
        archive.extract("usr/bin/prometheus", tmp_path, filter="data")
    assert files == {"usr/bin/prometheus", "usr/share/doc/prometheus/copyright", "usr/share/doc/prometheus/NOTICE"}
    done = subprocess.run([tmp_path / "usr" / "bin" / "prometheus", "--version"], capture_output=True, text=True)
    assert "version 2.42" in done.stdout + done.stderr
