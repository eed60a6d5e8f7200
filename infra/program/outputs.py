"""What the stack exports. The contract is that of modelfleet_outputs, which consumers import."""

from collections.abc import Mapping
from typing import Any

import pulumi

import components as c
from components.contract import METRICS_EXPORTER, PORTS, kind_of
from infra.program import tls
from infra.program.effective_context import effective_contexts
from infra.program.settings import Settings
from infra.program.settings.capacity import capacities
from modelfleet_outputs import VERSION, FleetOutputs, ModelOutput, StorageClasses


def models(settings: Settings, effective: Mapping[str, int] | None = None) -> list[ModelOutput]:
    """The fleet's models first, in the order of the configuration."""
    return [
        ModelOutput(
            id=name,
            context_length=found.context_length,
            effective_context=(effective or {}).get(name),
            warm_conversations=found.conversations,
            warm_tokens=found.tokens,
            turns_per_minute=found.turns_per_minute,
        )
        for name, found in capacities(settings).items()
    ]


def outputs(
    settings: Settings, api: c.ApiServer, fleet: c.OllamaFleet, images: Mapping[str, pulumi.Output[str]]
) -> pulumi.Output[dict[str, Any]]:
    """The stack output `fleet`, checked against the contract."""
    known = pulumi.Output.all(
        service=api.service_name,
        load_balancer=api.load_balancer,
        images=pulumi.Output.all(**images),
        effective=effective_contexts(settings, fleet.probe) if fleet.probe is not None else {},
    )
    return known.apply(lambda values: _document(settings, **values))


def _document(
    settings: Settings, service: str, load_balancer: str | None, images: dict[str, str], effective: Mapping[str, int]
) -> dict[str, Any]:
    namespace, port = settings.cluster.namespace, PORTS["api-server"]
    return FleetOutputs(
        version=VERSION,
        namespace=namespace,
        service=service,
        port=port,
        node_port=settings.api_server.node_port,
        load_balancer=load_balancer,
        base_path=tls.BASE_PATH,
        url=tls.url(settings, service),
        public_url=tls.public_url(settings),
        authority=tls.authority(settings) or None,
        models=models(settings, effective),
        aliases={name: alias.mostly for name, alias in settings.aliases.items()},
        images=images,
        storage_classes=StorageClasses(hot=settings.hot_class, shared=settings.shared_class),
        runtime_class=settings.runtime_class if settings.gpu.enabled else None,
        metrics={
            name: f"http://{name}.{namespace}.svc:{PORTS[kind_of(name)]}/metrics"
            for name in (*settings.server_components, METRICS_EXPORTER)
        },
    ).model_dump()
