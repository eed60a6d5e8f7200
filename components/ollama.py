"""The Ollama fleet."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
import pulumi_kubernetes as k8s

from components import pods
from components.contract import OLLAMA, PORTS, type_token
from components.models import SHARED_PATH, STORE_PATH, sync_container

core = k8s.core.v1
_DRAIN_S = 10
"""Ollama cuts its streams on SIGTERM, so the pod first waits until the gateway has stopped sending (it looks every 2 s)."""


@dataclass(frozen=True, kw_only=True)
class OllamaFleetArgs:
    """Inputs of OllamaFleet."""

    namespace: pulumi.Input[str]
    image: pulumi.Input[str]
    sync_image: pulumi.Input[str]
    """Image whose `model_sync` copies the shared store to the replica's own volume."""
    shared_claim: pulumi.Input[str]
    hot_class: pulumi.Input[str]
    hot_size: str
    replicas: int | None
    """None: an autoscaler owns the number."""
    resources: pods.ResourceArgs
    models: Sequence[str]
    """A replica is ready when it can show every one of them."""
    context_length: int
    """Tokens; always set, because Ollama's default depends on the GPU's memory."""
    num_parallel: int
    keep_alive: str
    max_queue: int
    prompt_cache_bytes: int
    """Host memory that each loaded model keeps old prompts in."""
    runtime_class: pulumi.Input[str] | None
    priority_class: pulumi.Input[str]
    claim_template: pulumi.Input[str] | None = None
    """ResourceClaimTemplate of a replica's GPUs, where they are claimed."""
    retain: bool
    """Keep the replicas' volumes when the fleet is deleted or scaled in."""


class OllamaFleet(pulumi.ComponentResource):
    """A StatefulSet of Ollama servers, each with its own node-local copy of the shared models.

    The headless Service gives clients every replica's address. Replicas start in parallel: one slow load must not hold
    the others back. No replica prunes the store or talks to the vendor's cloud.
    """

    url: pulumi.Output[str]

    def __init__(self, name: str, args: OllamaFleetArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(type_token("OllamaFleet"), name, {}, opts)
        child = pulumi.ResourceOptions(parent=self)
        service = pods.service(f"{name}-service", OLLAMA, args.namespace, {"http": PORTS[OLLAMA]}, child, headless=True)
        keep = "Retain" if args.retain else "Delete"
        k8s.apps.v1.StatefulSet(
            f"{name}-servers",
            metadata=pods.metadata(OLLAMA, args.namespace),
            spec=k8s.apps.v1.StatefulSetSpecArgs(
                # The Service's name, not its Output: awaiting one from the other would deadlock.
                service_name=OLLAMA,
                replicas=args.replicas,
                pod_management_policy="Parallel",
                selector=k8s.meta.v1.LabelSelectorArgs(match_labels=pods.selector(OLLAMA)),
                template=pods.template(OLLAMA, _pod(args)),
                volume_claim_templates=[_claim(args)],
                persistent_volume_claim_retention_policy=k8s.apps.v1.StatefulSetPersistentVolumeClaimRetentionPolicyArgs(
                    when_deleted=keep, when_scaled="Retain"
                ),
            ),
            opts=pulumi.ResourceOptions.merge(
                child, pulumi.ResourceOptions(custom_timeouts=pulumi.CustomTimeouts(create="60m", update="60m"))
            ),
        )
        pods.disruption_budget(f"{name}-budget", OLLAMA, args.namespace, child)
        self.url = service.metadata.name.apply(lambda host: f"http://{host}:{PORTS[OLLAMA]}")
        self.register_outputs({"url": self.url})


def _environment(args: OllamaFleetArgs) -> dict[str, str]:
    return {
        "HOME": "/tmp",  # noqa: S108 (its key pair is made at start and used by nobody)
        "OLLAMA_HOST": f"0.0.0.0:{PORTS[OLLAMA]}",
        "OLLAMA_MODELS": STORE_PATH,
        "OLLAMA_CONTEXT_LENGTH": str(args.context_length),
        "OLLAMA_NUM_PARALLEL": str(args.num_parallel),
        "OLLAMA_KEEP_ALIVE": args.keep_alive,
        "OLLAMA_MAX_QUEUE": str(args.max_queue),
        "OLLAMA_MAX_LOADED_MODELS": str(len(args.models)),
        "OLLAMA_LOAD_TIMEOUT": "30m",
        "OLLAMA_NOPRUNE": "1",
        "OLLAMA_NO_CLOUD": "1",
        "LLAMA_ARG_CACHE_RAM": str(args.prompt_cache_bytes // 2**20),
        # Only the device plugin sets this. Otherwise the image's own default would show the pod every GPU of the node.
        **({} if args.resources.gpus and not args.resources.claims_gpus else {"NVIDIA_VISIBLE_DEVICES": "void"}),
    }


def _pod(args: OllamaFleetArgs) -> core.PodSpecArgs:
    tmp, tmp_mount = pods.scratch()
    store = core.VolumeMountArgs(name="models", mount_path=STORE_PATH)
    shared = core.VolumeArgs(
        name="shared", persistent_volume_claim=core.PersistentVolumeClaimVolumeSourceArgs(claim_name=args.shared_claim, read_only=True)
    )
    shared_mount = core.VolumeMountArgs(name="shared", mount_path=SHARED_PATH, read_only=True)
    show = " && ".join(f"ollama show {json.dumps(model)} >/dev/null" for model in args.models)
    container = core.ContainerArgs(
        name="ollama",
        image=args.image,
        env=pods.env(_environment(args)),
        ports=[core.ContainerPortArgs(name="http", container_port=PORTS[OLLAMA])],
        resources=pods.resources(args.resources),
        security_context=pods.container_security(),
        volume_mounts=[tmp_mount, store],
        # `/` answers before any model is there, so readiness asks for the models themselves.
        readiness_probe=core.ProbeArgs(
            exec_=core.ExecActionArgs(command=["/bin/sh", "-c", show]), period_seconds=5, timeout_seconds=5, failure_threshold=3
        ),
        startup_probe=pods.http_probe("/", PORTS[OLLAMA], period_s=2, failures=90),
        # Loading keeps `/` fast; only a hung process fails twelve times.
        liveness_probe=pods.http_probe("/", PORTS[OLLAMA], period_s=10, failures=12, timeout_s=5),
        lifecycle=core.LifecycleArgs(pre_stop=core.LifecycleHandlerArgs(sleep=core.SleepActionArgs(seconds=_DRAIN_S))),
    )
    return pods.spec(
        OLLAMA,
        [container],
        [tmp, shared],
        init_containers=[sync_container(args.sync_image, SHARED_PATH, STORE_PATH, [tmp_mount, shared_mount, store])],
        grace_s=_DRAIN_S + 20,
        runtime_class=args.runtime_class,
        priority_class=args.priority_class,
        claim_template=args.claim_template,
    )


def _claim(args: OllamaFleetArgs) -> core.PersistentVolumeClaimArgs:
    return core.PersistentVolumeClaimArgs(
        metadata=k8s.meta.v1.ObjectMetaArgs(name="models"),
        spec=core.PersistentVolumeClaimSpecArgs(
            access_modes=["ReadWriteOnce"],
            storage_class_name=args.hot_class,
            resources=core.VolumeResourceRequirementsArgs(requests={"storage": args.hot_size}),
        ),
    )
