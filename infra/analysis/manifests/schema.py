"""Strict validation of rendered objects: an unknown field, a wrong type or a missing field is an error, without a cluster.

An object of a kind without a schema is an error, too. kubernetes.schema.json holds the schemas of KINDS, which `schema_source` makes.
"""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema

SCHEMAS = Path(__file__).parent / "kubernetes.schema.json"
KINDS: Mapping[str, tuple[str, ...]] = {
    "v1": (
        "ConfigMap",
        "LimitRange",
        "Namespace",
        "PersistentVolumeClaim",
        "ResourceQuota",
        "Secret",
        "Service",
        "ServiceAccount",
    ),
    "admissionregistration.k8s.io/v1": ("ValidatingWebhookConfiguration",),
    "apps/v1": ("DaemonSet", "Deployment", "StatefulSet"),
    "autoscaling/v2": ("HorizontalPodAutoscaler",),
    "batch/v1": ("CronJob", "Job"),
    "networking.k8s.io/v1": ("Ingress", "NetworkPolicy"),
    "node.k8s.io/v1": ("RuntimeClass",),
    "policy/v1": ("PodDisruptionBudget",),
    "rbac.authorization.k8s.io/v1": ("Role", "RoleBinding"),
    "resource.k8s.io/v1": ("ResourceClaimTemplate",),
    "scheduling.k8s.io/v1": ("PriorityClass",),
    "storage.k8s.io/v1": ("StorageClass",),
}
"""Kinds that the stack renders, and kinds that it may render later. A kind that is not here is an error of the rendering."""
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"


def _fields(required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": required.split(), "properties": properties}


_TEXT = {"type": "string", "minLength": 1}
_DURATION = {"type": "string", "pattern": r"^(0|([0-9]+(ms|[ywdhms]))+)$"}
_RULE = {
    "if": {"required": ["record"]},
    "then": _fields("record expr", record=_TEXT, expr=_TEXT, labels=_TEXTS),
    "else": _fields("alert expr", alert=_TEXT, expr=_TEXT, labels=_TEXTS, annotations=_TEXTS, **{"for": _DURATION}),
}
_PODS = _fields("matchLabels", matchLabels=_TEXTS)
_NAMED = _fields("name", group={"type": "string"}, kind=_TEXT, name=_TEXT)
"""The group of Kubernetes' own kinds is empty."""


def _custom(**spec: Any) -> dict[str, Any]:
    """An object whose spec has these fields."""
    return _fields(
        "apiVersion kind metadata spec", apiVersion=_TEXT, kind=_TEXT, metadata={"$ref": f"#/$defs/{_META}"}, spec=_fields(**spec)
    )


def _many(item: Any) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1}


CUSTOM: Mapping[str, dict[str, Any]] = {
    "cert-manager.io/v1/Certificate": _custom(
        required="secretName issuerRef dnsNames",
        secretName=_TEXT,
        dnsNames=_many(_TEXT),
        issuerRef=_NAMED,
        privateKey=_fields(
            "algorithm size", algorithm={"enum": ["RSA", "ECDSA", "Ed25519"]}, size={"type": "integer"}, rotationPolicy={"enum": ["Always"]}
        ),
        usages=_many({"enum": ["digital signature", "server auth"]}),
    ),
    "gateway.networking.k8s.io/v1/HTTPRoute": _custom(
        required="parentRefs hostnames rules",
        parentRefs=_many(_fields("name", name=_TEXT, namespace=_TEXT, sectionName=_TEXT)),
        hostnames=_many(_TEXT),
        rules=_many(
            _fields(
                "backendRefs",
                backendRefs=_many(_fields("name port", name=_TEXT, port={"type": "integer"})),
                timeouts=_fields("request", request={"type": "string", "pattern": r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"}),
            )
        ),
    ),
    "gateway.networking.k8s.io/v1/BackendTLSPolicy": _custom(
        required="targetRefs validation",
        targetRefs=_many(_NAMED),
        validation={
            **_fields("hostname", hostname=_TEXT, caCertificateRefs=_many(_NAMED), wellKnownCACertificates={"enum": ["System"]}),
            "oneOf": [{"required": ["caCertificateRefs"]}, {"required": ["wellKnownCACertificates"]}],
        },
    ),
    "monitoring.coreos.com/v1/PrometheusRule": _custom(
        required="groups", groups=_many(_fields("name rules", name=_TEXT, interval=_DURATION, rules=_many(_RULE)))
    ),
    "monitoring.coreos.com/v1/PodMonitor": _custom(
        required="selector podMetricsEndpoints", selector=_PODS, podMetricsEndpoints=_many(_fields("port", port=_TEXT))
    ),
    "monitoring.googleapis.com/v1/PodMonitoring": _custom(
        required="selector endpoints",
        selector=_PODS,
        endpoints=_many(_fields("port interval", port={"type": ["integer", "string"]}, interval=_TEXT)),
    ),
}
"""Kinds of operators, which the embedded API server does not know: of their fields only those that we render.
Sources: API references of the Prometheus operator, Google's managed service for Prometheus, cert-manager and the Gateway API (1.6);
durations as Prometheus' documentation has them, and GEP-2257."""


@functools.cache
def document() -> dict[str, Any]:
    """Every schema: those that are stored, and CUSTOM."""
    stored = json.loads(SCHEMAS.read_text())
    return {"kinds": {**stored["kinds"], **{kind: kind for kind in CUSTOM}}, "$defs": {**stored["$defs"], **CUSTOM}}


@functools.cache
def _validator(definition: str) -> jsonschema.Draft202012Validator:
    # A kind with slashes in its name is escaped as JSON Pointer wants it.
    return jsonschema.Draft202012Validator({"$ref": f"#/$defs/{definition.replace('/', '~1')}", "$defs": document()["$defs"]})


def problems(item: Mapping[str, Any]) -> list[str]:
    """What the API server would not accept, one line each: `<kind>/<name>: got X, want Y; do Z`."""
    title = f"{item.get('kind')}/{item.get('metadata', {}).get('name')}"
    kind = f"{item.get('apiVersion')}/{item.get('kind')}"
    definition = document()["kinds"].get(kind)
    if definition is None:
        return [f"{title}: got {kind}, want a kind with a schema; add it to KINDS or CUSTOM of infra/analysis/manifests/schema.py"]
    errors = sorted(_validator(definition).iter_errors(item), key=lambda error: error.json_path)
    return [f"{title}: {_line(error)}" for error in errors]


def _line(error: jsonschema.ValidationError) -> str:
    path = ".".join(str(part) for part in error.absolute_path) or "the object"
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        known = (error.schema if isinstance(error.schema, dict) else {}).get("properties", {})
        unknown = ", ".join(sorted(error.instance.keys() - known.keys()))
        return f"got the unknown field {unknown} in {path}, want one of {', '.join(sorted(known))}; correct it"
    if error.validator == "required":
        return f"got {path} without a field ({error.message}), want it; add it"
    want = error.validator_value if error.validator in ("type", "enum") else "another form"
    return f"got {str(error.instance)[:80]!r} at {path}, want {want}; correct it"
