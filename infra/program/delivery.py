"""From the declared models to the arguments of the component that delivers them."""

import ipaddress
from collections.abc import Mapping

import pulumi

import components as c
from infra.program.settings import Settings, inputs
from infra.program.settings.models import IMAGE, ModelSettings, is_address
from infra.program.settings.section import quantity
from infra.program.workload import workload
from model_sync.catalog import NO_REPLICA


def has_names(settings: Settings) -> bool:
    """Whether the writer has to look a name up."""
    return any(not is_address(host) for host, _ in settings.writer_reaches)


def origins(settings: Settings) -> list[c.OriginArgs]:
    """The networks that the writer connects to. A host with an address is its own network; one with a name is in delivery.networks."""
    found = [
        (cidr, port)
        for host, port in settings.writer_reaches
        for cidr in ([str(ipaddress.ip_network(host))] if is_address(host) else settings.delivery.networks)
    ]
    return [c.OriginArgs(cidr=cidr, port=port) for cidr, port in dict.fromkeys(found)]


def model_store(
    settings: Settings,
    namespace: pulumi.Input[str],
    images: Mapping[str, pulumi.Input[str]],
    store: c.Storage,
    runtime: c.GpuRuntime,
) -> c.ModelStoreArgs:
    """What the writer fetches, and where to."""
    fleet, limits = settings.fleet, settings.delivery
    models = [
        {
            "name": model.name,
            "source": model.source,
            "digest": model.digest,
            "size": int(quantity(model.size)),
            "context_length": settings.context_length(model),
            "quantization": model.quantization,
            "replicas": model.replicas or 0 if model.in_fleet else NO_REPLICA,
            "keep_alive": model.keep_alive or fleet.keep_alive,
            "format": model.format,
        }
        for model in settings.models
    ]
    return c.ModelStoreArgs(
        namespace=namespace,
        image=images["models"],
        sync_image=images["model-sync"],
        claim=store.shared_claim,
        capacity_bytes=int(quantity(settings.storage.shared.size)),
        # Without such a model the catalog does not depend on the size of the fleet.
        fleet=fleet.replicas if any(model.replicas for model in settings.models) else 0,
        models=models,
        rate_limit_bytes=int(quantity(limits.rate_limit or "0")),
        verify=limits.verify,
        ca_bundle=limits.ca_bundle,
        credentials=inputs.source_tokens(),
        proxy=limits.proxy,
        no_proxy=limits.no_proxy,
        # Everything waits for it, so it may take the room of batch work.
        priority_class=runtime.priority_class,
        workload=workload(settings, "model-sync"),
    )


def model_version(model: ModelSettings, image: pulumi.Output[str]) -> pulumi.Input[str]:
    """Version of a model server's model: its digest, the commit in its source, or the reference of the image that the model comes with."""
    return model.digest or (image if model.source == IMAGE else model.source)
