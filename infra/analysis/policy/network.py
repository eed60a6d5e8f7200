"""Rules on connections: what is denied, and what an allowed connection needs. rules.py lists them."""

from collections.abc import Sequence

from infra.analysis.policy.objects import WORKLOADS, Object, of, templates, title


def everything_is_denied_by_default(objects: Sequence[Object]) -> list[str]:
    namespaces = {item["metadata"].get("namespace") for item in of(objects, *WORKLOADS)}
    denied = {
        item["metadata"].get("namespace")
        for item in of(objects, "NetworkPolicy")
        if not item["spec"].get("podSelector")
        and set(item["spec"].get("policyTypes", [])) == {"Ingress", "Egress"}
        and not item["spec"].get("ingress")
        and not item["spec"].get("egress")
    }
    return [
        f"Namespace/{name}: got no policy that denies everything, want one; select all pods and allow nothing"
        for name in sorted(str(name) for name in namespaces - denied)
    ]  # fmt: skip


def policies_that_look_names_up_may_reach_dns(objects: Sequence[Object]) -> list[str]:
    """An egress rule to a pod is of no use to a client that cannot resolve its Service's name."""
    found: list[str] = []
    for item in of(objects, "NetworkPolicy"):
        rules = item["spec"].get("egress") or []
        ports = {(port.get("port"), port.get("protocol", "TCP")) for rule in rules for port in rule.get("ports", [])}
        to_pods = any("ipBlock" not in peer for rule in rules for peer in rule.get("to", []))
        if to_pods and not {(53, "UDP"), (53, "TCP")} <= ports:
            found.append(f"{title(item)}: got egress without DNS, want port 53 UDP and TCP; allow it")
    return found


def traffic_stays_near(objects: Sequence[Object]) -> list[str]:
    """A Service that balances for its clients should prefer endpoints of the client's own zone. Headless ones do not balance."""
    return [
        f"{title(item)}: got trafficDistribution {item['spec'].get('trafficDistribution')}, want PreferClose; set it"
        for item in of(objects, "Service")
        if item["spec"].get("clusterIP") != "None"
        and item["spec"].get("trafficDistribution") not in ("PreferClose", "PreferSameZone", "PreferSameNode")
    ]


def policies_select_pods_that_exist(objects: Sequence[Object]) -> list[str]:
    labels = [template.get("metadata", {}).get("labels", {}) for _, template in templates(objects)]
    found: list[str] = []
    for item in of(objects, "NetworkPolicy"):
        selected = item["spec"].get("podSelector", {}).get("matchLabels", {})
        peers = [peer for rule in item["spec"].get("ingress") or [] for peer in rule.get("from", [])]
        peers += [peer for rule in item["spec"].get("egress") or [] for peer in rule.get("to", [])]
        own = [peer for peer in peers if "podSelector" in peer and "namespaceSelector" not in peer]
        wanted = [selected, *(peer["podSelector"].get("matchLabels", {}) for peer in own)]
        found += [
            f"{title(item)}: got a selector {dict(selector)} that no pod has, want a component of the stack; add it or correct the labels"
            for selector in wanted
            if selector and not any(selector.items() <= each.items() for each in labels)
        ]
    return found
