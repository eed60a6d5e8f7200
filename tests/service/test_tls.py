"""TLS at the gateway: real handshakes, certificates that change under open streams, and clients that never end a handshake."""

import asyncio
import datetime
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from api_server.connections import SECURED_BYTES
from infra.lifecycle.bring_up import Certified, chat
from infra.preparation.certificates import api_server_tls, general_name
from tests.service.conftest import KEY
from tests.service.hostile import Level
from tests.service.mounted import NAMES, MountedSecret
from tests.service.neighbours import HEADERS, Asking, Behaviour, Fleet, Request, answers, ask
from tests.service.processes import Service, refused
from tests.service.test_neighbours import until

NONSENSE = (b"\x00" * 400, b"\x16\x03\x01\xff\xff" + b"\xff" * 70_000, b"GET / HTTP/1.1\r\n\r\n", b"\x80\x2e\x01\x00\x02", b"")
EVENT = b'data: {"choices": [{"delta": {"content": "tick"}}]}\n\n'


@pytest.fixture
def secret(tmp_path: Path) -> MountedSecret:
    return MountedSecret(tmp_path / "tls")


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path).running() as fleet:
        yield fleet


def tls(secret: MountedSecret, **env: str) -> dict[str, Any]:
    return {"TLS_DIR": str(secret.directory), "TLS_NAMES": ",".join(NAMES), **env}


def connected(service: Service) -> socket.socket:
    parts = urlsplit(service.url)
    return socket.create_connection((parts.hostname, parts.port or 0), timeout=20)


def greeted(service: Service, context: ssl.SSLContext | None = None) -> ssl.SSLSocket:
    """A connection whose handshake has ended."""
    assert isinstance(service.verify, ssl.SSLContext)
    return (context or service.verify).wrap_socket(connected(service), server_hostname=NAMES[0])


def serial(service: Service) -> int:
    """Of the certificate that a new connection gets."""
    with greeted(service) as connection:
        return x509.load_der_x509_certificate(connection.getpeercert(binary_form=True) or b"").serial_number


def serial_of(pair: Mapping[str, str]) -> int:
    return x509.load_pem_x509_certificate(pair["certificate"].encode()).serial_number


def metric(service: Service, name: str) -> float:
    text = httpx.get(f"{service.metrics_url}/metrics", timeout=10).text
    return float(next(line.split()[1] for line in text.splitlines() if line.startswith(name)))


def test_keys_and_answers_go_over_tls_alone(fleet: Fleet, secret: MountedSecret) -> None:
    fleet.add(answers)
    with fleet.gateway(**tls(secret)) as api:
        assert ask(api).status_code == 200
        with greeted(api) as connection:
            assert connection.version() == "TLSv1.3"
            # The request comes in one piece with the end of the handshake.
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
        offers = ssl.create_default_context(cafile=str(secret.directory / "ca.crt"))
        offers.set_alpn_protocols(["h2", "http/1.1"])
        offers.maximum_version = ssl.TLSVersion.TLSv1_2
        with greeted(api, offers) as connection:
            assert (connection.version(), connection.selected_alpn_protocol()) == ("TLSv1.2", "http/1.1")
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{api.url}/health", timeout=10)
        with closing(connected(api)) as plain:
            plain.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            assert not plain.recv(4096).startswith(b"HTTP/1.1 200")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
def test_no_older_tls(fleet: Fleet, secret: MountedSecret) -> None:
    fleet.add(answers)
    with fleet.gateway(**tls(secret)) as api:
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.set_ciphers("ALL:@SECLEVEL=0")
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        with pytest.raises(ssl.SSLError):
            greeted(api, old)


def ticks_until(go_on: threading.Event) -> Behaviour:
    """Streams that end when they may."""

    async def ticks(request: Request) -> None:
        await request.head("200 OK", "text/event-stream")
        await request.say(EVENT)
        while not go_on.is_set():
            await asyncio.sleep(0.05)
            await request.say(EVENT)
        await request.say(b"data: [DONE]\n\n")

    return ticks


def test_a_certificate_is_renewed_under_open_streams(fleet: Fleet, secret: MountedSecret) -> None:
    """Forty streams begin before the first of three renewals, and end after the last: all of them whole."""
    go_on = threading.Event()
    fleet.add(ticks_until(go_on))
    texts: list[str] = []

    def one(client: httpx.Client, started: threading.Barrier) -> None:
        body = {"model": "a", "messages": [{"role": "user", "content": "a"}], "stream": True}
        with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            parts = answer.iter_text()
            text = next(parts)
            started.wait(60)
            texts.append(text + "".join(parts))

    with fleet.gateway(route={"max_in_flight": 64}, **tls(secret)) as api, ExitStack() as stack:
        limits = httpx.Limits(max_connections=64)
        client = stack.enter_context(httpx.Client(base_url=api.url, headers=HEADERS, verify=api.verify, limits=limits, timeout=60))
        started = threading.Barrier(41)
        threads = [threading.Thread(target=one, args=(client, started)) for _ in range(40)]
        for thread in threads:
            thread.start()
        started.wait(60)
        renewed = secret.pair
        for _ in range(3):
            renewed = secret.renewed()
            until(lambda: serial(api) == serial_of(renewed))  # noqa: B023
        go_on.set()
        for thread in threads:
            thread.join(60)
        assert len(texts) == 40
        assert all(text.endswith("data: [DONE]\n\n") for text in texts)
        assert "certificate reloaded" in api.log.read_text()
        assert metric(api, "api_server_certificate_reload_failures_total") == 0
        not_after = x509.load_pem_x509_certificate(renewed["certificate"].encode()).not_valid_after_utc
        assert metric(api, "api_server_certificate_expiry_timestamp_seconds") == not_after.timestamp()


def test_make_up_asks_by_a_name_of_the_certificate(fleet: Fleet, secret: MountedSecret) -> None:
    """Whatever address leads there: a forwarded port is on loopback, which no certificate of others has in it."""
    fleet.add(answers)
    with fleet.gateway(**tls(secret, TLS_NAMES=NAMES[0])) as api:
        named = api_server_tls(NAMES[:1], {**secret.pair, "certificate": api_server_tls(["other.example.com"])["certificate"]})
        secret.put(named)
        until(lambda: serial(api) == serial_of(named))
        with pytest.raises(httpx.ConnectError, match="IP address mismatch"):
            ask(api)
        assert isinstance(api.verify, ssl.SSLContext)
        assert chat(api.url, KEY, "a", "Say it.", certified=Certified(NAMES[0], api.verify)) == "Hello."


def of_another_time(start_days: int, end_days: int) -> dict[str, str]:
    """A certificate with the right names that is valid at another time."""
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([]), datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([general_name(each) for each in NAMES])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(7)
    builder = builder.not_valid_before(now + datetime.timedelta(start_days)).not_valid_after(now + datetime.timedelta(end_days))
    certificate = builder.add_extension(names, critical=True).sign(key, hashes.SHA256())
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return {"certificate": certificate.public_bytes(serialization.Encoding.PEM).decode(), "privateKey": private.decode(), "authority": ""}


def with_a_password(pair: Mapping[str, str]) -> dict[str, str]:
    key = serialization.load_pem_private_key(pair["privateKey"].encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    form = serialization.BestAvailableEncryption(b"a")
    return {**pair, "privateKey": key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, form).decode()}


BAD: dict[str, tuple[Callable[[dict[str, str]], dict[str, str]], str]] = {
    "expired": (lambda _: of_another_time(-30, -1), "certificate has expired"),
    "not valid yet": (lambda _: of_another_time(1, 30), "certificate is not yet valid"),
    "of another name": (lambda pair: api_server_tls(["other.example.com"], pair), "is not valid for 'models.example.com'"),
    "not matching its key": (lambda pair: pair | {"privateKey": api_server_tls(NAMES)["privateKey"]}, "the key of another certificate"),
    "half-written certificate": (lambda pair: pair | {"certificate": pair["certificate"][:300]}, "what is no certificate in PEM"),
    "half-written key": (lambda pair: pair | {"privateKey": pair["privateKey"][:90]}, "what is no key in PEM"),
    "empty": (lambda pair: pair | {"certificate": "", "privateKey": ""}, "what is no certificate in PEM"),
    "with a password": (with_a_password, "without a password"),
    "an authority's": (lambda pair: pair | {"certificate": pair["authority"], "privateKey": pair["authorityKey"]}, "that clients refuse"),
}


def test_a_bad_certificate_keeps_the_old_one_and_says_so(fleet: Fleet, secret: MountedSecret) -> None:
    fleet.add(answers)
    with fleet.gateway(**tls(secret)) as api:
        before = serial(api)
        for name, (bad, said) in BAD.items():
            failures = metric(api, "api_server_certificate_reload_failures_total")
            seen = len(api.log.read_text())
            secret.put(bad(dict(secret.pair)))
            until(lambda: serial(api) == before and metric(api, "api_server_certificate_reload_failures_total") > failures)  # noqa: B023
            line = api.log.read_text()[seen:]
            assert said in line, (name, line)
            assert "the old certificate stays" in line
            assert "PRIVATE KEY" not in line
            assert line.count("\n") == line.count("the old certificate stays"), "a fault that lasts is said once"
        for path in secret.directory.glob("*.crt"):
            path.unlink()
        until(lambda: metric(api, "api_server_certificate_expiry") and "tls.crt: got No such file" in api.log.read_text())
        assert ask(api).status_code == 200
        (secret.directory / "tls.crt").symlink_to("..data/tls.crt")
        renewed = secret.renewed()
        until(lambda: serial(api) == serial_of(renewed))


@pytest.mark.parametrize("name", BAD)
def test_a_start_with_a_bad_certificate_is_one_clear_error(secret: MountedSecret, tmp_path: Path, name: str) -> None:
    bad, said = BAD[name]
    secret.put(bad(dict(secret.pair)))
    (tmp_path / "keys").write_text(json.dumps({"a": {"hash": "0" * 64}}))
    settings = {"KEYS_FILE": str(tmp_path / "keys"), "ROUTES": json.dumps({"a": {"url": "http://127.0.0.1:1"}}), **tls(secret)}
    status, errors = refused("api_server", {f"API_SERVER_{key}": value for key, value in settings.items()})
    assert status == 2
    assert said in errors
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1


def test_names_without_a_certificate_are_refused(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(json.dumps({"a": {"hash": "0" * 64}}))
    settings = {"KEYS_FILE": str(tmp_path / "keys"), "ROUTES": json.dumps({"a": {"url": "http://127.0.0.1:1"}}), "TLS_NAMES": "a.example"}
    status, errors = refused("api_server", {f"API_SERVER_{key}": value for key, value in settings.items()})
    assert (status, errors.count("\n")) == (2, 1)
    assert "API_SERVER_TLS_NAMES: got 'a.example', want none without API_SERVER_TLS_DIR" in errors


def test_a_stream_is_finished_before_the_process_ends(fleet: Fleet, secret: MountedSecret) -> None:
    go_on = threading.Event()
    fleet.add(ticks_until(go_on))
    with fleet.gateway(**tls(secret, DRAIN_S="30")) as api, httpx.Client(verify=api.verify, headers=HEADERS, timeout=30) as client:
        body = {"model": "a", "messages": [{"role": "user", "content": "a"}], "stream": True}
        with client.stream("POST", f"{api.url}/v1/chat/completions", json=body) as answer, greeted(api), closing(connected(api)):
            parts = answer.iter_text()
            text = next(parts)
            api.process.terminate()
            until(lambda: "draining" in api.log.read_text())
            go_on.set()
            assert (text + "".join(parts)).endswith("data: [DONE]\n\n")
            assert api.ended(15) == 0, "who idles, and who never shook hands, holds nothing up"
        assert "Traceback" not in api.log.read_text()


class TestHandshakes:
    """Who opens a connection and never ends its handshake costs a place for a while, and nobody else theirs."""

    def test_they_have_a_time(self, fleet: Fleet, secret: MountedSecret) -> None:
        fleet.add(answers)
        with fleet.gateway(**tls(secret, HEAD_S="2")) as api, closing(connected(api)) as silent, closing(connected(api)) as trickles:
            started = time.monotonic()
            with pytest.raises(ConnectionError):
                for byte in b"\x16\x03\x01\x02\x00" + b"\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200:
                    trickles.sendall(bytes([byte]))
                    time.sleep(0.1)
            assert time.monotonic() - started < 6
            with suppress(ConnectionResetError):
                assert silent.recv(10) == b""
            assert time.monotonic() - started < 8
            assert ask(api).status_code == 200

    def test_they_count_as_connections(self, fleet: Fleet, secret: MountedSecret) -> None:
        fleet.add(answers)
        with fleet.gateway(**tls(secret, MAX_CONNECTIONS="8")) as api, ExitStack() as stack:
            silent = [stack.enter_context(closing(connected(api))) for _ in range(60)]
            for each in silent[::2]:
                each.sendall(b"\x16\x03\x01")
            assert ask(api).status_code == 200
            others = 8
            """Two listeners, the loop's own pair, those to the server, and one that asks for metrics."""
            until(lambda: Level.of(api).sockets <= 8 + others)
            for each in [greeted(api) for _ in range(40)]:
                stack.enter_context(each)
            # Also of those whose client says nothing at the end.
            until(lambda: Level.of(api).sockets <= 8 + others, timeout_s=10)
            assert ask(api).status_code == 200

    def test_a_new_one_is_closed_when_all_work(self, fleet: Fleet, secret: MountedSecret) -> None:
        async def waits(request: Request) -> None:
            await asyncio.sleep(4)
            await request.answer()

        fleet.add(waits)
        with fleet.gateway(**tls(secret, MAX_CONNECTIONS="1")) as api:
            asking = Asking(api)
            asking.one("a")
            time.sleep(1.5)
            with closing(connected(api)) as connection, suppress(ConnectionResetError):
                assert connection.recv(10) == b""
            assert asking.all()["a"].status_code == 200
            until(lambda: ask(api).status_code == 200)

    def test_nonsense_is_no_fault_of_ours(self, fleet: Fleet, secret: MountedSecret) -> None:
        fleet.add(answers)
        with fleet.gateway(**tls(secret)) as api:
            for start in NONSENSE:
                with closing(connected(api)) as connection:
                    connection.sendall(start)
            greeted(api).close()
            assert ask(api).status_code == 200
            log = api.log.read_text()
            assert "Traceback" not in log
            assert " ERROR " not in log

    def test_one_that_stays_costs_little_memory(self, fleet: Fleet, secret: MountedSecret) -> None:
        """The bound of connections reckons with it (api_server/connections.py)."""
        fleet.add(answers)
        with fleet.gateway(**tls(secret, MAX_CONNECTIONS="1000")) as api, ExitStack() as stack:

            def resident() -> int:
                return int(Path(f"/proc/{api.process.pid}/status").read_text().split("VmRSS:")[1].split()[0]) * 1024

            def some(count: int) -> None:
                for _ in range(count):
                    connection = stack.enter_context(greeted(api))
                    connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
                    assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")

            some(50)
            before = resident()
            some(250)
            assert (resident() - before) / 250 < SECURED_BYTES
