"""Repairs the state of an update that was killed."""

import json
from typing import Any

_PROVIDER = "kubernetes:"


def has_pending(checkpoint: str) -> bool:
    """Whether a checkpoint file (or an export) has operations that were begun and whose end was not recorded."""
    document: dict[str, Any] = json.loads(checkpoint)
    deployment = document.get("deployment") or (document.get("checkpoint") or {}).get("latest") or {}
    return bool(deployment.get("pending_operations"))


def adopt(exported: str) -> str:
    """The export, in which each object that was being created counts as created, under the name that it was to get.

    The next refresh looks for the object. If the object is in the cluster, it stays in the state; otherwise the refresh removes it from the
    state. So no object with a generated name is left behind in the cluster. All other operations are cleared: their objects are in the
    state already, and a refresh reads them.
    """
    document: dict[str, Any] = json.loads(exported)
    deployment = document["deployment"]
    resources: list[dict[str, Any]] = deployment.setdefault("resources", [])
    for operation in deployment.pop("pending_operations", []):
        resource: dict[str, Any] = operation["resource"]
        metadata = (resource.get("inputs") or {}).get("metadata") or {}
        if operation["type"] != "creating" or not resource["type"].startswith(_PROVIDER) or not metadata.get("name"):
            continue
        for old in resources:
            # The object was being replaced: the old one is deleted once the new one is there.
            if old["urn"] == resource["urn"]:
                old["delete"] = True
        namespace = metadata.get("namespace")
        resource["id"] = f"{namespace}/{metadata['name']}" if namespace else metadata["name"]
        # The provider compares what it reads with the inputs that it kept here; without them it would replace the object.
        resource["outputs"] = {
            **resource["inputs"],
            "__inputs": resource["inputs"],
            "__initialApiVersion": resource["inputs"]["apiVersion"],
        }
        resources.append(resource)
    return json.dumps(document)
