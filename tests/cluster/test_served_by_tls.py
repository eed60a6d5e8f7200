"""The stack with a certificate of its own authority, on the embedded cluster: asked by its address, renewed without a restart."""

import datetime
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from cryptography import x509

from components.contract import API_SERVER
from components.tls import SECRET
from infra.lifecycle.bring_up import Certified, chat
from infra.preparation import certificates
from infra.preparation.certificates import api_server_tls
from modelfleet_outputs import FleetOutputs
from tests.cluster.conftest import MODEL, SCRIPT, Stack
from tests.cluster.judge import Cause, all_end, judged_fast, one_after_the_other
from tests.cluster.kube import eventually
from tests.cluster.test_changes_in_place import KUBELET_S, pods

pytestmark = pytest.mark.cluster
DEPLOYS_FIRST = True
TLS = "modelfleet:apiServerTls"
Change = Callable[[dict[str, str]], dict[str, str]]
"""From a certificate with its key to what is in the Secret in its place."""


@pytest.fixture(scope="module")
def secured(stack: Stack) -> Iterator[FleetOutputs]:
    """Its outputs."""
    stack.changed = True
    outputs = stack.deployment.deploy(overrides(stack))
    # Those that speak HTTP.
    stack.wait_for_ends()
    yield outputs
    stack.had_tls = True
    stack.deployment.cli.run("config", "rm", TLS)


def overrides(stack: Stack) -> dict[str, object]:
    return {**stack.overrides, "apiServer": {"tls": {"own": True}}}


def address(stack: Stack) -> tuple[str, int]:
    parts = urlsplit(stack.url)
    return str(parts.hostname), int(parts.port or 0)


@contextmanager
def connected(stack: Stack, outputs: FleetOutputs) -> Iterator[ssl.SSLSocket]:
    """As a client that knows the authority and the cluster's address alone."""
    trusts = ssl.create_default_context(cadata=outputs.authority)
    host, port = address(stack)
    with socket.create_connection((host, port), timeout=10) as plain, trusts.wrap_socket(plain, server_hostname=host) as connection:
        yield connection


def serial(stack: Stack, outputs: FleetOutputs) -> int:
    with connected(stack, outputs) as connection:
        return x509.load_der_x509_certificate(connection.getpeercert(binary_form=True) or b"").serial_number


def names_of(pair: Mapping[str, str]) -> list[str]:
    certificate = x509.load_pem_x509_certificate(pair["certificate"].encode())
    return [str(each.value) for each in certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value]


def test_it_answers_by_its_address_and_the_outputs_say_how(stack: Stack, secured: FleetOutputs) -> None:
    assert secured.url == f"https://api-server.{secured.namespace}.svc:8000/v1"
    certified = Certified.of(secured, stack.deployment.keep_authority(secured))
    host, port = address(stack)
    assert chat(f"https://{host}:{port}", stack.key, MODEL, "Say it.", certified=certified) == SCRIPT
    before = serial(stack, secured)
    again = stack.deployment.deploy(overrides(stack))
    assert (serial(stack, again), again.authority) == (before, secured.authority), "it stays what it is"


def test_a_renewed_certificate_restarts_no_pod_and_ends_no_connection(stack: Stack, secured: FleetOutputs) -> None:
    before, first = pods(stack), serial(stack, secured)
    made = json.loads(stack.deployment.cli.run("config", "get", TLS))
    wanted = [*names_of(made), "renewed.example.com"]
    stack.deployment.cli.run("config", "set", "--secret", TLS, stdin=json.dumps(api_server_tls(wanted, made)))
    with connected(stack, secured) as connection:

        def ask() -> None:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 200 "), "the connection of before goes on"

        # One that never asked is closed after half a minute, which a deployment may take.
        ask()
        outputs = stack.deployment.deploy(overrides(stack))
        assert outputs.authority == secured.authority
        stack.kube.touch(outputs.namespace, API_SERVER)

        def look() -> int:
            ask()
            return serial(stack, outputs)

        eventually(look, lambda found: found != first, KUBELET_S, "the new certificate")
    assert pods(stack) == before


def offers(stack: Stack, pair: Mapping[str, str]) -> None:
    """The Secret has that, and the API servers' nodes bring it."""
    namespace = stack.outputs.namespace
    patch = json.dumps({"stringData": {"tls.crt": pair["certificate"], "tls.key": pair["privateKey"]}})
    stack.kube.run("patch", "secret", SECRET, "-n", namespace, f"--patch={patch}")
    # A touch is of a whole second, and the last one may be of this one.
    time.sleep(1)
    stack.kube.touch(namespace, API_SERVER)


@contextmanager
def offered(stack: Stack, change: Change) -> Iterator[None]:
    """Another certificate, until the block ends."""
    own: dict[str, str] = json.loads(stack.deployment.cli.run("config", "get", TLS))
    offers(stack, change(own))
    try:
        yield
    finally:
        offers(stack, own)


def ends_soon(own: dict[str, str]) -> dict[str, str]:
    """An hour of it has gone, and six minutes are left."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(certificates, "_LEAF_LIFETIME", datetime.timedelta(minutes=6))
        return api_server_tls(["ends-soon.example.com", *names_of(own)], own)


def of_another_key(own: dict[str, str]) -> dict[str, str]:
    return own | {"privateKey": api_server_tls(["other.example.com"])["privateKey"]}


def cause(alert: str, says: str, change: Change) -> Cause[Stack]:
    return Cause((alert,), says, lambda stack: offered(stack, change))


STAGES = (
    [cause("CertificateEndsSoon", "a certificate of an hour that has six minutes left", ends_soon)],
    [cause("CertificateIsNotTaken", "a Secret with the key of another certificate", of_another_key)],
)
CAUSES = tuple(each for stage in STAGES for each in stage)


def test_alerts_fire_by_certificates_and_end_with_better_ones(stack: Stack, secured: FleetOutputs) -> None:
    with judged_fast(stack) as judge:
        one_after_the_other(judge, stack, STAGES)
        all_end(judge, CAUSES, 60)
