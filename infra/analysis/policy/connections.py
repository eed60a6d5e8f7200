"""Rules on what network policies allow: the table of components/contract.py, and no more. rules.py lists them.

Policies add up, so one that allows too much opens what the others deny.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from components.contract import (
    ACTIVATOR,
    API_SERVER,
    EDGES,
    IMAGE_VERIFIER,
    MODEL_SERVER,
    MODEL_WRITER,
    POOLS_ANNOTATION,
    PORTS,
    PROMETHEUS,
    SCRAPED,
    edges,
    kind_of,
    labels,
    metric_ports,
)
from infra.analysis.policy.objects import Object, of, title

_NAME = "app.kubernetes.io/name"
_NAMES_CLIENTS = (API_SERVER, IMAGE_VERIFIER)
"""Components whose clients are no pods of the stack."""
_NAMES_SERVERS = (MODEL_WRITER, ACTIVATOR, IMAGE_VERIFIER)
"""Components whose servers are no pods of the stack: sources of models, the cluster's API server, registries."""
_DNS_PORT = 53


def _judged(objects: Sequence[Object]) -> list[Object]:
    """Policies of namespaces that have some of ours. What another team's program opens in a namespace of its own is its own affair."""
    policies = list(of(objects, "NetworkPolicy"))
    ours = {_place(item) for item in policies if (item["metadata"].get("labels") or {}).items() >= labels("network").items()}
    return [item for item in policies if _place(item) in ours]


def _place(item: Object) -> str | None:
    return item["metadata"].get("namespace")


def policies_allow_the_table_and_no_more(objects: Sequence[Object]) -> list[str]:
    return [f"{title(item)}: got {what}, want what components/contract.py has; name it there" for item, what in _surplus(objects)]


def _surplus(objects: Sequence[Object]) -> Iterator[tuple[Object, str]]:
    for item in _judged(objects):
        component = _name(item.get("spec", {}).get("podSelector"))
        for rule in item.get("spec", {}).get("ingress") or []:
            if not rule.get("from") and component != IMAGE_VERIFIER:
                yield item, "connections from anywhere"
            if not rule.get("ports"):
                yield item, "connections to any port"
            yield from ((item, what) for what in _clients(component, rule))
        for rule in item.get("spec", {}).get("egress") or []:
            if not rule.get("to"):
                yield item, "connections to anywhere"
            if not rule.get("ports") and component != IMAGE_VERIFIER:
                yield item, "connections to any port of others"
            yield from ((item, what) for what in _servers(component, rule, _pools(item)))


def _clients(component: str, rule: Object) -> Iterator[str]:
    for peer in rule.get("from") or []:
        for port in _ports(rule):
            if "ipBlock" in peer:
                allowed = component in _NAMES_CLIENTS and port == PORTS[component]
            elif "namespaceSelector" in peer:
                allowed = _selects(peer["namespaceSelector"]) and port in (SCRAPED.get(kind_of(component)), _port_for_clients(component))
            else:
                allowed = (kind_of(_name(peer.get("podSelector"))), kind_of(component), port) in _EDGES
            if not allowed:
                yield f"{component or 'every pod'} open to {_shown(peer)} on port {port}"


def _pools(policy: Object) -> list[str]:
    """The pools of others that the configuration names, which the API server alone may reach."""
    named = (policy["metadata"].get("annotations") or {}).get(POOLS_ANNOTATION, "").split()
    return named if _name(policy["spec"].get("podSelector")) == API_SERVER else []


def _servers(component: str, rule: Object, pools: Sequence[str]) -> Iterator[str]:
    for peer in rule.get("to") or []:
        for port in _ports(rule):
            if "ipBlock" in peer:
                named = f"{peer['ipBlock'].get('cidr')}:{port:g}" in pools if port else False
                allowed = component in _NAMES_SERVERS or named or _DNS_PORT in _ports(rule)
            elif "namespaceSelector" in peer:
                name = (peer["namespaceSelector"].get("matchLabels") or {}).get("kubernetes.io/metadata.name")
                named = f"{name}:{port:g}" in pools if port else False
                allowed = named or (_selects(peer["namespaceSelector"]) and _DNS_PORT in _ports(rule))
            else:
                allowed = (kind_of(component), kind_of(_name(peer.get("podSelector"))), port) in _EDGES
            if not allowed:
                yield f"a way from {component or 'every pod'} to {_shown(peer)} on port {port}"


_EDGES = {(edge.source, edge.target, edge.port) for edge in EDGES}


def policies_allow_all_of_the_table(objects: Sequence[Object]) -> list[str]:
    """An edge is open when both of its ends are; metrics are of no use where nobody may read them."""
    policies = {_name(item.get("spec", {}).get("podSelector")): item for item in _judged(objects)}
    servers = [component for component in policies if kind_of(component) == MODEL_SERVER]
    found: list[str] = []
    for edge in edges(servers):
        if edge.source not in policies or edge.target not in policies:
            continue
        if not _has(policies[edge.target], "ingress", "from", edge.source, edge.port):
            found.append(f"{title(policies[edge.target])}: got no way in for {edge.source} to port {edge.port}, want one; allow it")
        if not _has(policies[edge.source], "egress", "to", edge.target, edge.port):
            found.append(f"{title(policies[edge.source])}: got no way to {edge.target} on port {edge.port}, want one; allow it")
    for component, port in metric_ports(servers).items():
        rules = (policies.get(component) or {"spec": {"ingress": None}})["spec"].get("ingress") or []
        scraped = any("namespaceSelector" in peer and port in _ports(rule) for rule in rules for peer in rule.get("from") or [])
        if component in policies and not scraped:
            found.append(f"{title(policies[component])}: got no way in for Prometheus to port {port}, want one; allow its namespace")
    return found


def _has(policy: Object, direction: str, side: str, other: str, port: int) -> bool:
    rules = policy.get("spec", {}).get(direction) or []
    return any(port in _ports(rule) and _name(peer.get("podSelector")) == other for rule in rules for peer in rule.get(side) or [])


def _ports(rule: Object) -> set[Any]:
    return {port.get("port") for port in rule.get("ports") or []}


def _port_for_clients(component: str) -> int | None:
    return PORTS[component] if component in (API_SERVER, PROMETHEUS) else None


def _name(selector: Object | None) -> str:
    """The component that is selected; nothing for a selector of another form."""
    return str(((selector or {}).get("matchLabels") or {}).get(_NAME, ""))


def _selects(selector: Object) -> bool:
    """Whether it leaves anything out."""
    return bool(selector.get("matchLabels") or selector.get("matchExpressions"))


def _shown(peer: Object) -> str:
    if "ipBlock" in peer:
        return str(peer["ipBlock"].get("cidr"))
    selector = peer.get("namespaceSelector") if "namespaceSelector" in peer else peer.get("podSelector")
    names = sorted(map(str, ((selector or {}).get("matchLabels") or {}).values()))
    return f"{'namespaces' if 'namespaceSelector' in peer else 'pods'} {', '.join(names) or 'of any kind'}"
