"""TLS at the API server, and the ways in by name: every object of the stack, through the rules and the schemas."""

import json
from typing import Any

import pytest

from infra.analysis.manifests.schema import problems
from infra.analysis.policy import rules
from infra.preparation.certificates import api_server_tls
from infra.program import stack, tls
from infra.program.settings import inputs, parse
from infra.program.settings.section import SettingsError
from tests.component.harness import rendered
from tests.component.test_fit import made
from tests.unit.test_settings import REFS, document
from tests.unit.test_settings_fuzz import GOOD, with_config

PAIR = api_server_tls(["api-server.modelfleet.svc", "models.example.com"])
HOST = "models.example.com"
NGINX = [{"namespace": "ingress-nginx", "labels": {"app.kubernetes.io/name": "ingress-nginx"}}]
ENVOY = [{"namespace": "envoy-gateway-system"}]
INGRESS: dict[str, Any] = {"ingress": {"className": "nginx"}, "proxies": NGINX}
ROUTE: dict[str, Any] = {"httpRoute": {"gateway": "public", "namespace": "gateways", "section": "https"}, "proxies": ENVOY}
ISSUER: dict[str, Any] = {"issuer": {"name": "letsencrypt"}}


def objects(**api_server: Any) -> dict[str, dict[str, Any]]:
    """By kind and name, everything of the stack with these settings of the API server; no rule is broken by it."""
    config = document("prod") | {"images": {"refs": REFS}}
    config["apiServer"] |= api_server
    secrets = GOOD | {"apiServerTls": json.dumps(PAIR)}
    found: list[dict[str, Any]] = []

    def build() -> None:
        settings = parse(rendered(config, namespace="modelfleet"))
        found.extend(made(lambda: stack.build(settings)))

    with_config({**{name: json.dumps(value) for name, value in config.items()}, **secrets}, build, tuple(secrets))
    assert rules.violations(found) == []
    # Under mocks a Secret has the wrapping of secrets.
    assert [line for item in found if item["kind"] != "Secret" for line in problems(item)] == []
    return {f"{item['kind']}/{item['metadata']['name']}": item for item in found}


def container(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return dict(found["Deployment/api-server"]["spec"]["template"]["spec"]["containers"][0])


def environment(found: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container(found)["env"]}


def mounted(found: dict[str, dict[str, Any]]) -> str | None:
    """The Secret with the certificate."""
    volumes = found["Deployment/api-server"]["spec"]["template"]["spec"]["volumes"]
    return next((each["secret"]["secretName"] for each in volumes if each["name"] == "tls"), None)


def admitted(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Who may connect to the port for clients."""
    policies = found["NetworkPolicy/api-server"]["spec"]["ingress"]
    return next(rule["from"] for rule in policies if rule["ports"] == [{"port": 8000, "protocol": "TCP"}])


def test_without_it_nothing_is_there() -> None:
    found = objects()
    assert mounted(found) is None
    assert not [name for name in environment(found) if "TLS" in name or "BODY" in name]
    assert "scheme" not in container(found)["readinessProbe"]["httpGet"]
    assert not {item["kind"] for item in found.values()} & {"Ingress", "HTTPRoute", "BackendTLSPolicy", "Certificate"}
    assert {"ipBlock": {"cidr": "0.0.0.0/0"}} in admitted(found)


@pytest.mark.parametrize(
    ("source", "host", "secret", "names"),
    [
        ({"secret": "team-tls"}, None, "team-tls", "api-server.modelfleet.svc"),
        ({"secret": "team-tls"}, HOST, "team-tls", HOST),
        (ISSUER, HOST, "api-server-tls", HOST),
        ({"own": True}, None, "api-server-tls", "api-server.modelfleet.svc"),
        ({"own": True}, HOST, "api-server-tls", f"api-server.modelfleet.svc,{HOST}"),
    ],
)
def test_the_process_gets_a_certificate_and_the_kubelet_asks_with_tls(
    source: dict[str, Any], host: str | None, secret: str, names: str
) -> None:
    found = objects(tls=source, **({"host": host} if host else {}))
    assert mounted(found) == secret
    assert {"name": "tls", "mountPath": "/etc/tls", "readOnly": True} in container(found)["volumeMounts"]
    assert (environment(found)["API_SERVER_TLS_DIR"], environment(found)["API_SERVER_TLS_NAMES"]) == ("/etc/tls", names)
    for probe in ("readinessProbe", "startupProbe", "livenessProbe"):
        assert container(found)[probe]["httpGet"]["scheme"] == "HTTPS"
    assert ("Secret/api-server-tls" in found) == ("own" in source)
    assert ("Certificate/api-server" in found) == ("issuer" in source)


def test_the_stacks_own_certificate_is_a_secret_that_changes_in_place() -> None:
    secret = objects(tls={"own": True})["Secret/api-server-tls"]
    assert secret["type"] == "kubernetes.io/tls"
    assert not secret.get("immutable")
    text = json.dumps(secret)
    assert json.dumps(PAIR["certificate"])[1:-1] in text
    assert json.dumps(PAIR["authority"])[1:-1] in text
    assert json.dumps(PAIR["authorityKey"])[1:-1] not in text, "whoever reads it could sign for other names"


@pytest.mark.parametrize("signs", [True, False])
def test_cert_manager_is_asked_for_the_names_that_clients_use(signs: bool) -> None:
    issuer = {"name": "internal", "kind": "Issuer", "serviceNames": signs}
    spec = objects(tls={"issuer": issuer}, host=HOST)["Certificate/api-server"]["spec"]
    inside = ["api-server.modelfleet.svc", "api-server.modelfleet.svc.cluster.local"]
    assert spec["dnsNames"] == [*(inside if signs else []), HOST]
    assert spec["issuerRef"] == {"name": "internal", "kind": "Issuer", "group": "cert-manager.io"}
    assert spec["secretName"] == "api-server-tls"


def test_an_ingress_has_the_limits_of_the_process() -> None:
    found = objects(host=HOST, wayIn=INGRESS, holdSeconds=100, queueSeconds=50)
    ingress, env = found["Ingress/api-server"], environment(found)
    told = {name.partition("/")[2]: value for name, value in ingress["metadata"]["annotations"].items() if name.startswith("nginx.")}
    assert told == {
        "proxy-body-size": f"{int(env['API_SERVER_MAX_BODY_BYTES']) // 2**20 + 1}m",
        "proxy-read-timeout": str(100 + 50 + int(env["API_SERVER_REQUEST_TIMEOUT_S"]) + 30),
        "proxy-buffering": "off",
        "proxy-request-buffering": "off",
    }
    assert ingress["spec"]["ingressClassName"] == "nginx"
    assert ingress["spec"]["tls"] == [{"hosts": [HOST]}], "the controller's own certificate, and never without TLS"
    [rule] = ingress["spec"]["rules"]
    assert (rule["host"], rule["http"]["paths"][0]["backend"]["service"]) == (HOST, {"name": "api-server", "port": {"number": 8000}})


def test_whoever_is_behind_a_proxy_admits_the_proxy_alone() -> None:
    namespace = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress-nginx"}}}
    proxy = namespace | {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "ingress-nginx"}}}
    assert admitted(objects(host=HOST, wayIn=INGRESS)) == [proxy]
    assert admitted(objects(host=HOST, wayIn=INGRESS, clientCidrs=["10.0.0.0/8"])) == [{"ipBlock": {"cidr": "10.0.0.0/8"}}, proxy]
    elsewhere = {**INGRESS, "proxies": []}
    assert admitted(objects(host=HOST, wayIn=elsewhere, clientCidrs=["10.0.0.0/8"])) == [{"ipBlock": {"cidr": "10.0.0.0/8"}}]


@pytest.mark.parametrize(
    ("source", "own", "shown"),
    [
        ({"own": True}, {}, "api-server-tls"),
        ({"secret": "team-tls"}, {}, "team-tls"),
        ({"own": True}, {"tlsSecret": "wildcard"}, "wildcard"),
    ],
)
def test_an_ingress_shows_the_certificate_and_speaks_tls_behind_it(source: dict[str, Any], own: dict[str, str], shown: str) -> None:
    way = {**INGRESS, "ingress": {"className": "nginx", **own}}
    ingress = objects(host=HOST, wayIn=way, tls=source)["Ingress/api-server"]
    assert ingress["spec"]["tls"] == [{"hosts": [HOST], "secretName": shown}]
    assert ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/backend-protocol"] == "HTTPS"


def test_with_passthrough_the_controller_sees_nothing() -> None:
    way = {**INGRESS, "ingress": {"className": "nginx", "passthrough": True, "annotations": {"example.com/a": "b"}}}
    ingress = objects(host=HOST, wayIn=way, tls={"own": True})["Ingress/api-server"]
    told = {name: value for name, value in ingress["metadata"]["annotations"].items() if not name.startswith(("pulumi", "modelfleet"))}
    assert told == {"nginx.ingress.kubernetes.io/ssl-passthrough": "true", "example.com/a": "b"}
    assert ingress["spec"]["tls"] == [{"hosts": [HOST]}]


def test_a_route_of_the_gateway_api_has_no_time_limit() -> None:
    found = objects(host=HOST, wayIn=ROUTE)
    spec = found["HTTPRoute/api-server"]["spec"]
    assert spec["parentRefs"] == [{"name": "public", "namespace": "gateways", "sectionName": "https"}]
    assert spec["hostnames"] == [HOST]
    assert spec["rules"] == [{"backendRefs": [{"name": "api-server", "port": 8000}], "timeouts": {"request": "0s"}}]
    assert "BackendTLSPolicy/api-server" not in found
    assert admitted(found) == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "envoy-gateway-system"}}}]


@pytest.mark.parametrize(
    ("source", "validation"),
    [
        ({"own": True}, {"hostname": "api-server.modelfleet.svc", "caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": "api-server-authority"}]}),
        (ISSUER, {"hostname": HOST, "wellKnownCACertificates": "System"}),
        ({"secret": "a", "ca": PAIR["authority"]}, {"hostname": HOST, "caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": "api-server-authority"}]}),
    ],
)  # fmt: skip
def test_a_gateway_is_told_whom_to_believe(source: dict[str, Any], validation: dict[str, Any]) -> None:
    found = objects(host=HOST, wayIn=ROUTE, tls=source)
    spec = found["BackendTLSPolicy/api-server"]["spec"]
    assert spec == {"targetRefs": [{"group": "", "kind": "Service", "name": "api-server"}], "validation": validation}
    if "caCertificateRefs" in validation:
        assert found["ConfigMap/api-server-authority"]["data"] == {"ca.crt": PAIR["authority"]}


@pytest.mark.parametrize(
    ("api_server", "url", "public"),
    [
        ({}, "http://api-server.modelfleet.svc:8000/v1", None),
        ({"tls": {"own": True}}, "https://api-server.modelfleet.svc:8000/v1", None),
        ({"tls": {"secret": "a"}, "host": HOST}, f"https://{HOST}:8000/v1", f"https://{HOST}:8000/v1"),
        ({"tls": ISSUER, "host": HOST}, f"https://{HOST}:8000/v1", f"https://{HOST}:8000/v1"),
        (
            {
                **{"tls": {"issuer": {"name": "a", "serviceNames": True}}, "host": HOST},
                **{"serviceType": "NodePort", "nodePort": 30443, "clientCidrs": ["10.0.0.0/8"]},
            },
            "https://api-server.modelfleet.svc:8000/v1",
            f"https://{HOST}:30443/v1",
        ),
        ({"wayIn": INGRESS, "host": HOST}, "http://api-server.modelfleet.svc:8000/v1", f"https://{HOST}/v1"),
        ({"wayIn": ROUTE, "host": HOST, "tls": {"own": True}}, "https://api-server.modelfleet.svc:8000/v1", f"https://{HOST}/v1"),
        ({"host": HOST}, "http://api-server.modelfleet.svc:8000/v1", f"http://{HOST}:8000/v1"),
    ],
)
def test_addresses_have_the_name_of_the_certificate(api_server: dict[str, Any], url: str, public: str | None) -> None:
    config = document("prod")
    config["apiServer"] |= api_server
    config["cluster"]["namespace"] = "modelfleet"
    said: list[tuple[str, str | None]] = []

    def look() -> None:
        settings = parse(config)
        said.append((tls.url(settings, "api-server"), tls.public_url(settings)))

    with_config({**GOOD, "apiServerTls": json.dumps(PAIR)}, look, tuple(GOOD))
    assert said == [(url, public)]


@pytest.mark.parametrize(
    ("api_server", "line"),
    [
        ({"tls": {"own": True, "secret": "a"}}, "tls.secret: got secret and own, want one of secret, issuer and own; remove the others"),
        ({"tls": {}}, "tls.secret: got none of them, want one of secret, issuer and own; set one"),
        ({"tls": {"own": False}}, "tls.own: got False, want true; correct it"),
        ({"tls": {"own": True, "ca": PAIR["authority"]}}, "tls.ca: got one with own, want the authority of the stack's own; remove it"),
        (
            {"tls": {"secret": "a", "ca": "no PEM"}},
            "tls.ca: got something else, want the authority's certificate in PEM; take it from who signs",
        ),
        (
            {"tls": {"secret": "a", "ca": PAIR["authorityKey"]}},
            "tls.ca: got something else, want the authority's certificate in PEM; take it",
        ),
        (
            {"tls": {"secret": "a", "ca": "é"}},
            "tls.ca: got something else, want the authority's certificate in PEM; take it from who signs",
        ),
        ({"tls": {"secret": "a", "ca": ""}}, "tls.ca: got something else, want the authority's certificate in PEM; take it from who signs"),
        ({"tls": ISSUER}, "host: got nothing with an issuer that signs no names of Services, want a name for the certificate; set it"),
        ({"wayIn": INGRESS}, "host: got nothing with wayIn, want the name that clients use; set it"),
        ({"wayIn": {"proxies": NGINX}, "host": HOST}, "wayIn.ingress: got none of them, want one of ingress and httpRoute; set one"),
        ({"wayIn": {**INGRESS, **ROUTE}, "host": HOST}, "wayIn.ingress: got both, want one of ingress and httpRoute; remove one"),
        (
            {"wayIn": {**INGRESS, "proxies": []}, "host": HOST},
            "wayIn.proxies: got none, want the proxy's pods, or its networks in clientCidrs; name them",
        ),
        ({"wayIn": INGRESS, "host": HOST, "serviceType": "LoadBalancer"}, "serviceType: got LoadBalancer with wayIn, want one way in"),
        (
            {"wayIn": {"ingress": {"className": "a", "passthrough": True}, "proxies": NGINX}, "host": HOST},
            "wayIn.ingress.passthrough: got no apiServer.tls, want TLS at the API server alone; set tls, and no tlsSecret",
        ),
        (
            {
                "wayIn": {"ingress": {"className": "a", "passthrough": True, "tlsSecret": "b"}, "proxies": NGINX},
                "host": HOST,
                "tls": {"secret": "c"},
            },
            "wayIn.ingress.passthrough: got a certificate for the controller too, want TLS at the API server alone; set tls, and no tlsSecret",
        ),
        ({"host": "https://models.example.com"}, "host: got 'https://models.example.com', want"),
        ({"host": "*.example.com"}, "host: got '*.example.com', want"),
    ],
)
def test_wrong_settings_are_one_line(api_server: dict[str, Any], line: str) -> None:
    config = document("prod")
    config["apiServer"] |= api_server
    with pytest.raises(SettingsError) as error:
        parse(config)
    assert str(error.value).startswith(f"modelfleet:apiServer.{line}")
    assert "\n" not in str(error.value)
    assert "PRIVATE" not in str(error.value)


def test_a_certificate_of_ones_own_that_is_not_there_is_said_with_the_command() -> None:
    config = document("prod") | {"images": {"refs": REFS}}
    config["cluster"] = {"renderTo": "/rendered", "namespace": "team-b"}
    config["apiServer"] |= {"tls": {"own": True}, "host": HOST}

    def load() -> None:
        with pytest.raises(SettingsError) as error:
            inputs.load()
        assert str(error.value) == (
            "modelfleet:apiServerTls: got nothing with apiServer.tls.own, want its certificate and authority; run python -m "
            f"infra.preparation.certificates team-b --api-server {HOST} | pulumi config set --secret apiServerTls"
        )

    with_config({**{name: json.dumps(value) for name, value in config.items()}, **GOOD}, load, tuple(GOOD))
