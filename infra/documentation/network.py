"""docs/network.md, drawn from the table of allowed connections."""

from components.contract import (
    ACTIVATOR,
    API_SERVER,
    COMPONENTS,
    DNS_CLIENTS,
    EDGES,
    KUBERNETES_PORTS,
    MODEL_WRITER,
    PORTS,
    PROMETHEUS,
    SCRAPED,
)

_INTRODUCTION = """# Who may talk to whom

Drawn from `EDGES`, `DNS_CLIENTS` and `SCRAPED` of `components/contract.py` by `python -m infra.documentation`; a test compares
the two. `components/network.py` makes the NetworkPolicies from the same table: everything is denied in both directions, then
each of these is allowed at both of its ends. `tests/cluster/test_network.py` tries every pair of pods on every port and compares with
the table.

Policies hold only where the cluster's network plugin enforces them (Calico, Cilium, kube-router, ...); flannel alone does not.

The fleet runs where pods have IPv4, IPv6 or both, with no setting. Every process listens on each address of its pod: the kubelet probes
one, a forwarded port comes in over loopback, and a kernel without IPv6 is no error. Services have the cluster's first family; with
`apiServer.ipFamilyPolicy: PreferDualStack` that of the API server has both. Settings that take networks take those of both families, and
a network of one lets nothing of the other through: `0.0.0.0/0` alone keeps out whoever comes over IPv6.
"""


def connections() -> list[tuple[str, str, str]]:
    """(source, target, port) of everything that is allowed, as a reader calls them."""
    rows = [("clients (`apiServer.clientCidrs`, `network.clients`, `apiServer.wayIn.proxies`)", API_SERVER, str(PORTS[API_SERVER]))]
    rows += [(_title(edge.source), edge.target, str(edge.port)) for edge in EDGES]
    rows += [("another Prometheus (`monitoring.prometheusNamespace`)", component, str(port)) for component, port in SCRAPED.items()]
    rows += [(_title(component), "DNS (kube-system)", "53 UDP and TCP") for component in DNS_CLIENTS]
    rows += [(MODEL_WRITER, "sources (`models`, or `delivery.proxy`; and DNS if one has a name)", "theirs")]
    rows += [(API_SERVER, "pools of others (`externalPools`)", "theirs")]
    rows += [("clients of Prometheus (`monitoring.prometheus.clients`)", PROMETHEUS, str(PORTS[PROMETHEUS]))]
    ports = " and ".join(map(str, KUBERNETES_PORTS))
    rows += [(_title(ACTIVATOR), "the cluster's API server (`scale.kubernetesCidrs`)", ports)]
    return rows


def _title(component: str) -> str:
    settings = {ACTIVATOR: "`fleet.scale` or `modelServers.scale`", PROMETHEUS: "`monitoring.prometheus`"}
    return f"{component} (with {settings[component]})" if component in settings else component


def _node(name: str) -> str:
    """A Mermaid node: an identifier without spaces, and the name it shows."""
    short = name.partition(" (")[0]
    identifier = "".join(letter for letter in short.lower() if letter.isalnum())
    return f'{identifier}["{short}"]'


def document() -> str:
    """The whole page."""
    rows = connections()
    silent = [component for component in COMPONENTS if all(component not in row[:2] for row in rows)]
    picture = [f"    {_node(source)} -->|{port}| {_node(target)}" for source, target, port in rows]
    picture += [f"    {_node(component)}" for component in silent]
    table = [f"| {source} | {target} | {port} |" for source, target, port in rows]
    table += [f"| {component} | nobody | |" for component in silent]
    return "\n".join(
        [_INTRODUCTION, "```mermaid", "flowchart LR", *picture, "```", "", "| from | to | port |", "| --- | --- | --- |", *table, ""]
    )
