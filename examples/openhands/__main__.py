"""What OpenHands needs to use a fleet: a ConfigMap and a Secret to be read as its environment (`envFrom`).

Configuration (`pulumi config set openhands:<key>`):
  fleet      the stack of the team (examples/team), for example organization/modelfleet-team/search-team; or the fleet's own
  namespace  where OpenHands runs; it exists already
  model      one of the fleet's model ids; its first when unset
  context    context of the kubeconfig; or
  renderTo   absolute directory: write YAML there and talk to no cluster
"""

import pulumi
import pulumi_kubernetes as k8s

from modelfleet_outputs import FleetOutputs, ModelOutput
from modelfleet_outputs.stack import Fleet

MIN_CONTEXT = 16384
"""Tokens. OpenHands refuses a model with less (MIN_CONTEXT_WINDOW_TOKENS of its SDK)."""


class ModelError(pulumi.RunError):
    """The fleet has no model that OpenHands can use; the message says what to do."""


def choose(outputs: FleetOutputs, wanted: str | None) -> ModelOutput:
    """The wanted model, or the fleet's first. Raises ModelError when OpenHands would refuse it."""
    known = {model.id: model for model in outputs.models}
    model = known.get(wanted) if wanted else outputs.models[0]
    if model is None:
        raise ModelError(f"openhands:model: got {wanted}, want one of {', '.join(known)}; correct it")
    if model.context_length < MIN_CONTEXT:
        got = f"{model.id} with {model.context_length} tokens of context"
        raise ModelError(f"openhands:model: got {got}, want {MIN_CONTEXT} or more; raise contextLength in the fleet's stack")
    return model


def main() -> None:
    config = pulumi.Config("openhands")
    fleet = Fleet(pulumi.StackReference(config.require("fleet")))
    wanted = config.get("model")
    directory = config.get("renderTo")
    provider = (
        k8s.Provider("cluster", render_yaml_to_directory=directory)
        if directory
        else k8s.Provider("cluster", context=config.require("context"))
    )
    metadata = k8s.meta.v1.ObjectMetaArgs(name="openhands-llm", namespace=config.require("namespace"))
    opts = pulumi.ResourceOptions(provider=provider)
    model = fleet.outputs.apply(lambda outputs: choose(outputs, wanted))
    # LiteLLM, which OpenHands calls models through, takes an OpenAI-compatible server as openai/<model> with its base URL.
    settings = k8s.core.v1.ConfigMap(
        "openhands-llm",
        metadata=metadata,
        data={"LLM_MODEL": model.apply(lambda each: f"openai/{each.id}"), "LLM_BASE_URL": fleet.outputs.apply(lambda outputs: outputs.url)},
        opts=opts,
    )
    k8s.core.v1.Secret(
        "openhands-llm",
        metadata=metadata,
        string_data={"LLM_API_KEY": fleet.api_keys.apply(lambda keys: keys[0])},
        # Nothing is made for a model that is refused.
        opts=pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(depends_on=[settings])),
    )
    pulumi.export("model", model.apply(lambda each: each.id))


if __name__ == "__main__":
    main()
