"""Problems of connections: policies that block an edge of the contract, Services without pods, and the answer of the API server."""

import ipaddress
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from components.contract import (
    ACTIVATOR,
    API_SERVER,
    CONTEXT_PROBE,
    DNS_CLIENTS,
    MODEL_SERVER,
    OLLAMA,
    PART_OF,
    PROMETHEUS,
    SCALES_VARIABLE,
    edges,
    every,
    kind_of,
    metric_ports,
)
from infra.analysis.explain.facts import Facts, Finding, key, labels, selects
from infra.analysis.explain.snapshot import Object

_SCALED = ("Deployment", "StatefulSet")


@dataclass(frozen=True)
class _Peer:
    """The other end of a connection, as a policy sees it."""

    labels: dict[str, str]
    namespace: dict[str, str]
    address: str | None


def policies(facts: Facts) -> Iterator[Finding]:
    """Edges of the contract that the namespace's policies do not let through, and look-ups that they block."""
    pods = {facts.component(pod): pod for pod in facts.live_pods()}
    own = {"kubernetes.io/metadata.name": facts.snapshot.namespace} | (labels(facts.all("Namespace")[0]) if facts.all("Namespace") else {})
    blocked: dict[str, list[tuple[str, str]]] = {}

    def block(at: Object, side: str, source: str, what: str) -> None:
        name = _selecting(facts, at, side)[0]["metadata"]["name"]
        blocked.setdefault(name, []).append((source, f"{source} to {what} ({side})"))

    for edge in edges(facts.servers):
        source, target = pods.get(edge.source), pods.get(edge.target)
        if source is not None and target is not None:
            for side, at, other in (("egress", source, target), ("ingress", target, source)):
                peer = _Peer(labels(other), own, other["status"].get("podIP"))
                if not _allowed(facts, at, side, peer, (edge.port, "TCP")):
                    block(at, side, edge.source, f"{edge.target}:{edge.port}")
    for component in (component for name in DNS_CLIENTS for component in every(name, facts.servers)):
        if component in pods and not _may_look_up(facts, pods[component]):
            block(pods[component], "egress", component, "the cluster's DNS")
    for name, found in blocked.items():
        yield Finding(
            cause="policy",
            subject=f"NetworkPolicy/{name}",
            got=f"no rule for {', '.join(what for _, what in found)}",
            want="these edges open",
            do="run make up, which restores the fleet's policies, or add the rule to your own",
            about=frozenset({f"NetworkPolicy/{name}"}),
            covers=frozenset(f"soft:{source}" for source, _ in found),
        )


def _selecting(facts: Facts, pod: Object, side: str) -> list[Object]:
    return [
        policy
        for policy in facts.all("NetworkPolicy")
        if selects(policy["spec"].get("podSelector") or {}, labels(pod)) and side.capitalize() in policy["spec"].get("policyTypes", [])
    ]


def _allowed(facts: Facts, pod: Object, side: str, peer: _Peer, port: tuple[int, str]) -> bool:
    """Whether the policies that select `pod` let it talk to (or hear from) the peer; no policy lets everything through."""
    policies_here = _selecting(facts, pod, side)
    field = "to" if side == "egress" else "from"
    return not policies_here or any(
        _peer_matches(rule.get(field), peer, facts.snapshot.namespace) and _port_matches(rule.get("ports"), port)
        for policy in policies_here
        for rule in policy["spec"].get(side) or []
    )


def _may_look_up(facts: Facts, pod: Object) -> bool:
    """Whether any UDP goes out. Each platform has its DNS in another place and on another port, and of a fleet nothing else is UDP."""
    policies_here = _selecting(facts, pod, "egress")
    return not policies_here or any(
        not rule.get("ports") or any(each.get("protocol") == "UDP" for each in rule["ports"])
        for policy in policies_here
        for rule in policy["spec"].get("egress") or []
    )


def _peer_matches(rules: list[Any] | None, peer: _Peer, own: str) -> bool:
    return not rules or any(_in_block(rule["ipBlock"], peer.address) if "ipBlock" in rule else _selected(rule, peer, own) for rule in rules)


def _in_block(block: Object, text: str | None) -> bool:
    if text is None:
        return False
    address = ipaddress.ip_address(text)
    excluded = any(address in ipaddress.ip_network(cidr) for cidr in block.get("except", []))
    return address in ipaddress.ip_network(block["cidr"]) and not excluded


def _selected(rule: Object, peer: _Peer, own: str) -> bool:
    there = rule.get("namespaceSelector")
    in_place = selects(there, peer.namespace) if there is not None else peer.namespace.get("kubernetes.io/metadata.name") == own
    return in_place and selects(rule.get("podSelector") or {}, peer.labels)


def _port_matches(ports: list[Any] | None, wanted: tuple[int, str]) -> bool:
    """Named ports count as open: their number is known only to the pod at the other end."""
    number, protocol = wanted
    return not ports or any(
        each.get("protocol", "TCP") == protocol
        and (not isinstance(each.get("port"), int) or each["port"] <= number <= each.get("endPort", each["port"]))
        for each in ports
    )


def _sleeps(facts: Facts, component: str) -> bool:
    """Whether these are servers that the activator has taken to zero: the next request brings them back."""
    servers = facts.find("StatefulSet", component)
    awake = servers is None or servers["spec"].get("replicas", 1) > 0
    return not awake and component in _scaled_by_activator(facts)


def _scaled_by_activator(facts: Facts) -> Collection[str]:
    if (activator := facts.find("Deployment", ACTIVATOR)) is None:
        return ()
    container = activator["spec"]["template"]["spec"]["containers"][0]
    # One of an older release scales the fleet alone, and has no list.
    told = next((each["value"] for each in container.get("env", []) if each["name"] == SCALES_VARIABLE), None)
    return (OLLAMA,) if told is None else json.loads(told).keys()


def scaled(facts: Facts) -> Iterator[Finding]:
    """Workloads with zero replicas."""
    for kind in _SCALED:
        for item in facts.all(kind):
            if item["spec"].get("replicas", 1) == 0 and not _sleeps(facts, item["metadata"]["name"]):
                name = key(item, kind)
                yield Finding(
                    cause="scaled-to-zero",
                    subject=name,
                    got="0 replicas",
                    want="at least 1",
                    do=f"run make up, or kubectl scale -n {facts.snapshot.namespace} {name} --replicas=1",
                    about=frozenset({name}),
                    covers=frozenset(services_for(facts, labels(item["spec"]["template"]))),
                )


def services(facts: Facts) -> Iterator[Finding]:
    """Services without a ready pod."""
    for service in facts.all("Service"):
        selector = service["spec"].get("selector")
        if not selector or any(_is_ready(endpoint) for endpoint in _endpoints(facts, service)):
            continue
        if _sleeps(facts, selector.get("app.kubernetes.io/name", "")):
            continue
        shown = ",".join(f"{name}={value}" for name, value in selector.items())
        matching = [pod for pod in facts.live_pods() if selector.items() <= labels(pod).items()]
        got = "no ready endpoint" if matching else f"no pod with the labels {shown}"
        do = "run make up, which makes its pods" if labels(service).get("app.kubernetes.io/part-of") == PART_OF else "correct its selector"
        about = {key(service, "Service")} | {key(pod, "Pod") for pod in matching} | {f"soft:{selector.get('app.kubernetes.io/name', '')}"}
        yield Finding(
            cause="no-endpoints", subject=key(service, "Service"), got=got, want="at least one", do=do, about=frozenset(about)
        )  # fmt: skip


def services_for(facts: Facts, found: dict[str, str]) -> Iterator[str]:
    """`Service/name` of those that select pods with these labels."""
    for service in facts.all("Service"):
        selector = service["spec"].get("selector")
        if selector and selector.items() <= found.items():
            yield key(service, "Service")


def _endpoints(facts: Facts, service: Object) -> Iterator[Object]:
    for each in facts.all("EndpointSlice"):
        if labels(each).get("kubernetes.io/service-name") == service["metadata"]["name"]:
            yield from each.get("endpoints") or []


def _is_ready(endpoint: Object) -> bool:
    return bool(endpoint.get("conditions", {}).get("ready"))


def missing(facts: Facts) -> Iterator[Finding]:
    """Components of a fleet that have no workload."""
    if not facts.all("Namespace") or labels(facts.all("Namespace")[0]).get("app.kubernetes.io/part-of") != PART_OF:
        return
    there = {facts.component(item) for kind in _SCALED for item in facts.all(kind)}
    # The context probe is a Job, and may be deleted once it has ended.
    ends = {end for edge in edges(facts.servers) for end in (edge.source, edge.target)} | metric_ports(facts.servers).keys()
    for component in sorted(ends - {CONTEXT_PROBE, ACTIVATOR, PROMETHEUS}):
        if component not in there:
            kind = "StatefulSet" if kind_of(component) in (OLLAMA, MODEL_SERVER) else "Deployment"
            yield Finding(
                cause="component-missing",
                subject=f"{kind}/{component}",
                got="none",
                want="it running",
                do="run make up",
                about=frozenset({f"{kind}/{component}"}),
                covers=frozenset({f"Service/{component}", f"soft:{component}"}),
            )


def answer(facts: Facts) -> Iterator[Finding]:
    """The answer of the API server to the key that was tried."""
    status = facts.snapshot.answer
    if status is None or status == 200:
        return
    if status == 401:
        got, want = "401 for the key that was tried", "200"
        do = "use one of modelfleet:apiKeys: make up says which file holds it, or pulumi config get apiKeys"
        cause, about = "wrong-key", "Secret:keys"
    else:
        got, want = (f"status {status}" if status else "no answer") + " for GET /v1/models", "200"
        cause, about, do = "no-answer", f"soft:{API_SERVER}", "see kubectl logs deployment/api-server"
    yield Finding(cause=cause, subject="api-server", got=got, want=want, do=do, about=frozenset({about}))
