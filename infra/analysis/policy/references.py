"""Rules on names: what an object selects, uses or promises is there. rules.py lists them."""

from collections.abc import Sequence

from infra.analysis.policy.objects import WORKLOADS, Object, all_containers, of, templates, title


def services_reach_pods(objects: Sequence[Object]) -> list[str]:
    found: list[str] = []
    for item in of(objects, "Service"):
        selector = item.get("spec", {}).get("selector") or {}
        chosen = [template.get("spec", {}) for other, template in templates(objects) if _selected(item, selector, other, template)]
        if not chosen:
            found.append(f"{title(item)}: got a selector {dict(selector)} that no pod has, want a component of the stack; correct it")
            continue
        opened = {port.get("containerPort") for pod in chosen for container in all_containers(pod) for port in container.get("ports", [])}
        found += [
            f"{title(item)}: got target port {port.get('targetPort')}, want one of {sorted(opened)}, which its pods open; correct it"
            for port in item.get("spec", {}).get("ports", [])
            if isinstance(port.get("targetPort"), int) and port["targetPort"] not in opened
        ]
    return found


def _selected(item: Object, selector: Object, workload: Object, template: Object) -> bool:
    same = item["metadata"].get("namespace") == workload["metadata"].get("namespace")
    return same and bool(selector) and selector.items() <= template.get("metadata", {}).get("labels", {}).items()


def budgets_keep_servers(objects: Sequence[Object]) -> list[str]:
    """A drain takes at most one replica at a time. Servers of one replica have nothing to keep."""
    budgets = [(item, item.get("spec", {}).get("selector", {}).get("matchLabels") or {}) for item in of(objects, "PodDisruptionBudget")]
    found: list[str] = []
    for item, selector in budgets:
        if not any(_selected(item, selector, other, template) for other, template in templates(objects)):
            found.append(f"{title(item)}: got a selector {dict(selector)} that no pod has, want a component of the stack; correct it")
        if item.get("spec", {}).get("maxUnavailable") != 1:
            found.append(f"{title(item)}: got maxUnavailable {item['spec'].get('maxUnavailable')}, want 1; set it")
    for item in of(objects, "Deployment", "StatefulSet"):
        template, replicas = item.get("spec", {}).get("template", {}), item.get("spec", {}).get("replicas")
        kept = any(_selected(budget, selector, item, template) for budget, selector in budgets)
        if isinstance(replicas, int) and replicas > 1 and not kept:
            found.append(f"{title(item)}: got {replicas} replicas without a PodDisruptionBudget, want one; add it")
    return found


def volumes_are_mounted(objects: Sequence[Object]) -> list[str]:
    found: list[str] = []
    for item, template in templates(objects):
        pod = template.get("spec", {})
        mounted = {mount["name"] for container in all_containers(pod) for mount in container.get("volumeMounts", [])}
        found += [
            f"{title(item)}: got a volume {volume['name']} that no container mounts, want it used; mount or remove it"
            for volume in pod.get("volumes", [])
            if volume["name"] not in mounted
        ]
    return found


def classes_are_used(objects: Sequence[Object]) -> list[str]:
    """A stack that makes classes of a kind uses each of them, and no others."""
    claims = [item.get("spec", {}) for item in of(objects, "PersistentVolumeClaim")]
    claims += [
        claim.get("spec", {}) for item in of(objects, "StatefulSet") for claim in item.get("spec", {}).get("volumeClaimTemplates", [])
    ]
    wanted = {claim.get("storageClassName") for claim in claims}
    found = [
        f"{title(item)}: got a class that no claim names, want it used; name it or remove it"
        for item in of(objects, "StorageClass")
        if item["metadata"]["name"] not in wanted
    ]
    made = {item["metadata"]["name"] for item in of(objects, "RuntimeClass")}
    found += [
        f"{title(item)}: got runtimeClassName {template['spec']['runtimeClassName']}, want one of {', '.join(sorted(made))}; correct it"
        for item, template in templates(objects)
        if made and template.get("spec", {}).get("runtimeClassName") not in (None, *made)
    ]
    return found


def rights_are_narrow(objects: Sequence[Object]) -> list[str]:
    """Nobody gets everything: not by the role that has it, and not by a star."""
    found = [
        f"{title(item)}: got {item['roleRef'].get('name')}, want a role with what the pod needs; name its verbs and resources"
        for item in of(objects, "ClusterRoleBinding", "RoleBinding")
        if item.get("roleRef", {}).get("kind") == "ClusterRole"
        and item.get("roleRef", {}).get("name") in ("cluster-admin", "admin", "edit")
    ]
    found += [
        f"{title(item)}: got * in {field}, want names; list them"
        for item in of(objects, "ClusterRole", "Role")
        for rule in item.get("rules") or []
        for field in ("apiGroups", "resources", "verbs")
        if "*" in rule.get(field, [])
    ]
    return found


def namespaces_of_pods_are_restricted(objects: Sequence[Object]) -> list[str]:
    used = {item["metadata"].get("namespace") for item in of(objects, *WORKLOADS)}
    key = "pod-security.kubernetes.io/enforce"
    return [
        f"{title(item)}: got {key} {(item['metadata'].get('labels') or {}).get(key)}, want restricted; set it"
        for item in of(objects, "Namespace")
        if item["metadata"]["name"] in used and (item["metadata"].get("labels") or {}).get(key) != "restricted"
    ]
