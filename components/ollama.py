"""The Ollama fleet."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import pulumi
import pulumi_kubernetes as k8s

from . import containers, objects, pods
from .contract import AGENT_CONTROL_PORT, COPIES_ANNOTATION, OLLAMA, PORTS, RUNTIME_ANNOTATION, selector, type_token
from .models import LOCAL_VOLUME, SHARED_PATH, STORE_PATH, follower, kept_claims, local_claim
from .ollama_agent import (
    LOAD_S,
    AgentArgs,
    agent_container,
    context_probe,
    drain_hook,
    models_are_loaded,
    replicas_service,
    revision,
)
from .workload import ORDINARY, WorkloadArgs

core = k8s.core.v1
_MAX_MODELS = 32
"""More than the configuration takes. Nothing in the pod may depend on the list of models, or every change of it would restart the fleet."""
_HUNG_GRACE_S = 30
"""Of a server one of whose engines hangs: what the streams of its other models have to end."""
_NO_AWAIT = {"pulumi.com/waitFor": "jsonpath={.metadata.uid}"}
"""Pulumi does not wait for the replicas: it would wait for an hour, and would not say that a model does not fit.
The context probe waits for them, and says so."""


@dataclass(frozen=True, kw_only=True)
class OllamaFleetArgs:
    """Inputs of OllamaFleet."""

    namespace: pulumi.Input[str]
    image: pulumi.Input[str]
    sync_image: pulumi.Input[str]
    """Image whose `model_sync` keeps the replica's own volume equal to the shared store."""
    shared_claim: pulumi.Input[str]
    hot_class: pulumi.Input[str]
    hot_size: str
    hot_bytes: int
    """The same in bytes."""
    replicas: int | None
    """None: one at first, and an autoscaler owns the number."""
    autoscaled: bool = False
    """An autoscaler owns the number, and `replicas` is how many there are at first."""
    keep_copies: bool = True
    """Keep the volumes of replicas that were scaled away. Without, a replica that comes back may come on another node, and copies anew."""
    resources: containers.ResourceArgs
    context_length: int
    """Tokens; always set, because Ollama's default depends on the GPU's memory."""
    num_parallel: int = 1
    keep_alive: str = "-1"
    max_queue: int = 16
    prompt_cache_bytes: int = 8 * 2**30
    """Host memory that each loaded model keeps old prompts in."""
    runtime_class: pulumi.Input[str] | None = None
    """Empty: the nodes' default runtime is wanted, also for GPUs. That is noted on the fleet, for the policy pack."""
    priority_class: pulumi.Input[str] | None = None
    claim_template: pulumi.Input[str] | None = None
    """ResourceClaimTemplate of a replica's GPUs, where they are claimed."""
    agent: AgentArgs
    models: Mapping[str, int]
    """Model to the number of replicas that hold it. The context probe asks for them; no pod of the fleet knows of it."""
    retain: bool
    """Keep the replicas' volumes when the fleet is deleted or scaled in."""
    workload: WorkloadArgs = ORDINARY


class OllamaFleet(pulumi.ComponentResource):
    """A StatefulSet of Ollama servers, each with its own node-local copy of the shared models.

    The headless Service gives clients every replica's address. Replicas start in parallel: one slow load must not hold
    the others back. No replica prunes the store or talks to the vendor's cloud. The agent in each pod says when it is ready,
    and lets its requests end before it stops; the fleet is there when the context probe has found every model on every replica.

        images = {name: f"registry.example.com/{name}@sha256:" + 64 * "0" for name in ("ollama", "model-sync", "ollama-agent")}
        fleet = OllamaFleet("ollama", OllamaFleetArgs(
            namespace="fleet", image=images["ollama"], sync_image=images["model-sync"], shared_claim="shared-models",
            hot_class="local-nvme", hot_size="100Gi", hot_bytes=100 * 2**30, replicas=3,
            resources=ResourceArgs(cpu="8", memory="64Gi", gpus=1), context_length=65536,
            runtime_class="nvidia",
            priority_class="gpu-priority", agent=AgentArgs(image=images["ollama-agent"], drain_s=600, min_context=16384),
            models={"qwen3-coder:30b": 3}, retain=True))
        pulumi.export("url", fleet.url)
    """

    url: pulumi.Output[str]
    probe: pulumi.Output[str] | None
    """Name of the Job that probed the contexts, known when it has completed. None where an autoscaler may have taken the replicas away."""

    def __init__(self, name: str, args: OllamaFleetArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(type_token("OllamaFleet"), name, {}, opts)
        child = pulumi.ResourceOptions(parent=self)
        service = objects.service(f"{name}-service", OLLAMA, args.namespace, {"http": PORTS[OLLAMA]}, child, headless=True)
        replicas_service(f"{name}-replicas", args.namespace, child)
        version = _revision(args)
        runs = objects.account(f"{name}-account", OLLAMA, args.namespace, child, args.workload)
        servers = _servers(f"{name}-servers", args, version, runs)
        self.probe = None
        if args.replicas is not None and not args.autoscaled:
            after = pulumi.ResourceOptions.merge(child, pulumi.ResourceOptions(depends_on=[servers]))
            job = context_probe(f"{name}-contexts", args.agent, args.namespace, args.replicas, args.models, version, after)
            self.probe = job.metadata.name
        objects.disruption_budget(f"{name}-budget", OLLAMA, args.namespace, child)
        self.url = service.metadata.name.apply(lambda host: f"http://{host}:{PORTS[OLLAMA]}")
        self.register_outputs({"url": self.url, "probe": self.probe})


def _servers(name: str, args: OllamaFleetArgs, version: pulumi.Input[str], opts: pulumi.ResourceOptions) -> k8s.apps.v1.StatefulSet:
    noted = {RUNTIME_ANNOTATION: "node-default"} if args.runtime_class == "" else {}
    noted |= {} if args.keep_copies else {COPIES_ANNOTATION: "disposable"}
    return k8s.apps.v1.StatefulSet(
        name,
        metadata=objects.metadata(OLLAMA, args.namespace, annotations=_NO_AWAIT | noted),
        spec=k8s.apps.v1.StatefulSetSpecArgs(
            # The Service's name, not its Output: awaiting one from the other would deadlock.
            service_name=OLLAMA,
            replicas=args.replicas,
            pod_management_policy="Parallel",
            selector=k8s.meta.v1.LabelSelectorArgs(match_labels=selector(OLLAMA)),
            template=pods.template(OLLAMA, _pod(args, version)),
            volume_claim_templates=[local_claim(args.hot_class, args.hot_size)],
            persistent_volume_claim_retention_policy=kept_claims(deleted=args.retain, scaled=args.keep_copies),
        ),
        opts=pods.scaled_by_others(opts) if args.autoscaled else opts,
    )


def _environment(args: OllamaFleetArgs) -> dict[str, str]:
    return {
        "HOME": "/tmp",  # noqa: S108 (its key pair is made at start and used by nobody)
        # Go takes it for every address of both families, and a kernel without IPv6 is no error; `::` would be one there.
        "OLLAMA_HOST": f"0.0.0.0:{PORTS[OLLAMA]}",
        "OLLAMA_MODELS": STORE_PATH,
        "OLLAMA_CONTEXT_LENGTH": str(args.context_length),
        "OLLAMA_NUM_PARALLEL": str(args.num_parallel),
        "OLLAMA_KEEP_ALIVE": args.keep_alive,
        "OLLAMA_MAX_QUEUE": str(args.max_queue),
        # All of the catalog, which the memory was planned for; never fewer, or a request to one model would unload another.
        "OLLAMA_MAX_LOADED_MODELS": str(_MAX_MODELS),
        "OLLAMA_LOAD_TIMEOUT": f"{LOAD_S}s",
        "OLLAMA_NOPRUNE": "1",
        "OLLAMA_NO_CLOUD": "1",
        "LLAMA_ARG_CACHE_RAM": str(args.prompt_cache_bytes // 2**20),
        # Only the device plugin sets this. Otherwise the image's own default would show the pod every GPU of the node.
        **({} if args.resources.gpus and not args.resources.claims_gpus else {"NVIDIA_VISIBLE_DEVICES": "void"}),
    }


def _revision(args: OllamaFleetArgs) -> pulumi.Output[str]:
    """Of everything in the pods. The list of models is not in them."""
    parts = _environment(args) | {"drain": str(args.agent.drain_s), "resources": asdict(args.resources), "workload": _placed(args)}
    return revision(parts, [args.image, args.sync_image, args.agent.image])


def _placed(args: OllamaFleetArgs) -> dict[str, object]:
    """Without what is as it was before there was a choice: the revision stays."""
    placed = asdict(args.workload)
    if args.workload.log_level == "info":
        del placed["log_level"]
    return placed


def _pod(args: OllamaFleetArgs, version: pulumi.Input[str]) -> core.PodSpecArgs:
    tmp, tmp_mount = containers.scratch()
    store = core.VolumeMountArgs(name=LOCAL_VOLUME, mount_path=STORE_PATH)
    read_only_store = core.VolumeMountArgs(name=LOCAL_VOLUME, mount_path=STORE_PATH, read_only=True)
    shared = containers.claim("shared", args.shared_claim, read_only=True)
    shared_mount = core.VolumeMountArgs(name="shared", mount_path=SHARED_PATH, read_only=True)
    container = core.ContainerArgs(
        name="ollama",
        image=args.image,
        env=containers.env(_environment(args)),
        ports=[core.ContainerPortArgs(name="http", container_port=PORTS[OLLAMA])],
        resources=containers.resources(args.resources),
        security_context=containers.security(),
        volume_mounts=[tmp_mount, read_only_store],
        # `/` answers before any model is there; the agent knows whether they were loaded. However long a load takes, only readiness waits
        # for it: the other two ask whether somebody listens, which a load leaves alone. An engine that hangs never ends its requests, so
        # the drain is cut short. With GPUs the agent itself is asked whether the models are loaded, for it has no GPU to look at.
        readiness_probe=containers.gpu_probe() if args.resources.gpus else models_are_loaded(),
        startup_probe=containers.http_probe("/", PORTS[OLLAMA], period_s=2, failures=150),
        liveness_probe=containers.http_probe("/alive", AGENT_CONTROL_PORT, period_s=10, failures=6, timeout_s=5, grace_s=_HUNG_GRACE_S),
        lifecycle=drain_hook(),
    )
    sync = follower(args.sync_image, args.hot_bytes, [tmp_mount, shared_mount, store])
    placement = pods.Placement(
        workload=args.workload,
        runtime_class=args.runtime_class or None,
        priority_class=args.priority_class,
        claim_template=args.claim_template,
        gpu_toleration=args.resources.gpus > 0,
        apart=True,
    )
    return pods.spec(
        OLLAMA,
        [container],
        [tmp, shared],
        placement,
        init_containers=[sync, agent_container(args.agent, version, gpu=args.resources.gpus > 0)],
        grace_s=args.agent.grace_s,
    )
