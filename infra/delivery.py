"""From the declared models to the inputs of what delivers them."""

import ipaddress
from collections.abc import Mapping

import pulumi

import components as c
from infra.model_settings import is_address
from infra.section import quantity
from infra.settings import Settings


def has_names(settings: Settings) -> bool:
    """Whether a source is named by host name, not by address."""
    return any(model.origin and not is_address(model.origin[0]) for model in settings.models)


def origins(settings: Settings) -> list[c.OriginArgs]:
    """Addresses by themselves; names by the networks that the configuration gives them."""
    found = [
        (cidr, port)
        for host, port in filter(None, (model.origin for model in settings.models))
        for cidr in ([str(ipaddress.ip_network(host))] if is_address(host) else settings.delivery.networks)
    ]
    return [c.OriginArgs(cidr=cidr, port=port) for cidr, port in dict.fromkeys(found)]


def model_store(
    settings: Settings, namespace: pulumi.Input[str], images: Mapping[str, pulumi.Input[str]], claim: pulumi.Input[str]
) -> c.ModelStoreArgs:
    fleet, limits = settings.fleet, settings.delivery
    models = [
        {
            "name": model.name,
            "source": model.source,
            "digest": model.digest,
            "size": int(quantity(model.size)),
            "context_length": settings.context_length(model),
            "quantization": model.quantization,
            "replicas": model.replicas or 0,
            "keep_alive": model.keep_alive or fleet.keep_alive,
        }
        for model in settings.models
    ]
    return c.ModelStoreArgs(
        namespace=namespace,
        image=images["models"],
        sync_image=images["model-sync"],
        claim=claim,
        capacity_bytes=int(quantity(settings.storage.shared.size)),
        # Only then does another size of the fleet need another catalog.
        fleet=fleet.replicas if any(model.replicas for model in settings.models) else 0,
        models=models,
        rate_limit_bytes=int(quantity(limits.rate_limit or "0")),
        verify=limits.verify,
        ca_bundle=limits.ca_bundle,
    )


def model_version(settings: Settings, image: pulumi.Output[str]) -> pulumi.Input[str]:
    """Of the model server's model: its digest; without one it comes with the image."""
    model = next(model for model in settings.models if model.name == settings.model_server.model)
    return model.digest or image
