"""The agent beside each Ollama server, and the Job that asks all agents whether the fleet keeps its promise."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_kubernetes as k8s

from . import pods
from .contract import AGENT_CONTROL_PORT, AGENT_PORT, CONTEXT_PROBE, OLLAMA, OLLAMA_REPLICAS
from .models import STORE_PATH

core = k8s.core.v1
AGENT = "ollama-agent"
AGENT_RESOURCES = pods.ResourceArgs(cpu="20m", memory="128Mi")
PROBE_RESOURCES = pods.ResourceArgs(cpu="20m", memory="128Mi")
LOAD_S = 1800
"""Longest load of one model: 130 GB at the 72 MB/s that were seen over a network file system (ollama issue 5826)."""
_START_S = 900
"""What one replica of a rollout may take beside its drain: images, the copy of the models, the load."""
_LEAST_S = 3600
"""A first deployment copies every model."""
_GRACE_MARGIN_S = 30
"""Between the end of the longest drain and Kubernetes' kill."""


@dataclass(frozen=True, kw_only=True)
class AgentArgs:
    """Inputs of the agent and the probe."""

    image: pulumi.Input[str]
    drain_s: int
    """Longest wait for requests in flight when a replica has to stop."""
    min_context: int
    """Tokens that every replica must hold for every model."""

    @property
    def grace_s(self) -> int:
        return self.drain_s + _GRACE_MARGIN_S


def rollout_s(replicas: int, drain_s: int) -> int:
    """Longest time in which every replica is replaced, one after the other."""
    return max(_LEAST_S, replicas * (drain_s + _START_S))


def revision(parts: Mapping[str, Any], images: Sequence[pulumi.Input[str]]) -> pulumi.Output[str]:
    """A name for what the replicas are made from. It stands in their pods, so the probe knows new ones from old ones.

    Images stand in it as they are, and not in the digest, which would change a reviewed rendering with every edit of a service.
    """
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
    return pulumi.Output.all(*images).apply(lambda known: " ".join([digest, *known]))


def agent_container(args: AgentArgs, version: pulumi.Input[str], *, gpu: bool) -> core.ContainerArgs:
    """A native sidecar: it starts before Ollama and stops after it. `gpu`: models that are not all on GPUs make the replica unready."""
    values: dict[str, pulumi.Input[str]] = {
        "OLLAMA_AGENT_CATALOG": f"{STORE_PATH}/catalog.json",
        "OLLAMA_AGENT_STORE": STORE_PATH,
        "OLLAMA_AGENT_DRAIN_S": str(args.drain_s),
        "OLLAMA_AGENT_LOAD_TIMEOUT_S": str(LOAD_S),
        "OLLAMA_AGENT_REVISION": version,
    }
    name = core.EnvVarArgs(
        name="OLLAMA_AGENT_REPLICA",
        value_from=core.EnvVarSourceArgs(field_ref=core.ObjectFieldSelectorArgs(field_path="metadata.name")),
    )
    return core.ContainerArgs(
        name=AGENT,
        image=args.image,
        restart_policy="Always",
        env=[*pods.env(values), name, *pods.env({"OLLAMA_AGENT_GPU": "1"} if gpu else {})],
        ports=[
            core.ContainerPortArgs(name="metrics", container_port=AGENT_PORT),
            core.ContainerPortArgs(name="control", container_port=AGENT_CONTROL_PORT),
        ],
        resources=pods.resources(AGENT_RESOURCES),
        security_context=pods.container_security(),
        volume_mounts=[core.VolumeMountArgs(name="models", mount_path=STORE_PATH, read_only=True)],
        startup_probe=pods.http_probe("/health", AGENT_CONTROL_PORT, period_s=1, failures=60),
        readiness_probe=pods.http_probe("/health", AGENT_CONTROL_PORT),
        liveness_probe=pods.http_probe("/health", AGENT_CONTROL_PORT, period_s=10, failures=6, timeout_s=5),
    )


def drain_hook() -> core.LifecycleArgs:
    """Before SIGTERM, which cuts Ollama's streams."""
    get = core.HTTPGetActionArgs(path="/drain", port=AGENT_CONTROL_PORT)
    return core.LifecycleArgs(pre_stop=core.LifecycleHandlerArgs(http_get=get))


def replicas_service(name: str, namespace: pulumi.Input[str], opts: pulumi.ResourceOptions) -> None:
    """Every replica's address, ready or not. Clients of models use the other Service, which has the ready ones."""
    core.Service(
        name,
        metadata=k8s.meta.v1.ObjectMetaArgs(
            name=OLLAMA_REPLICAS, namespace=namespace, labels=pods.labels(OLLAMA), annotations=dict(pods.SKIP_AWAIT)
        ),
        spec=core.ServiceSpecArgs(
            type="ClusterIP",
            cluster_ip="None",
            selector=pods.selector(OLLAMA),
            publish_not_ready_addresses=True,
            ports=[core.ServicePortArgs(name="agent", port=AGENT_PORT, target_port=AGENT_PORT)],
        ),
        opts=opts,
    )


def context_probe(
    name: str,
    args: AgentArgs,
    namespace: pulumi.Input[str],
    replicas: int,
    models: Mapping[str, int],
    version: pulumi.Input[str],
    opts: pulumi.ResourceOptions,
) -> k8s.batch.v1.Job:
    """A Job that completes when every replica of `version` is ready with the promised contexts, and fails when one cannot be."""
    timeout_s = rollout_s(replicas, args.drain_s)
    container = core.ContainerArgs(
        name=CONTEXT_PROBE,
        image=args.image,
        args=["probe"],
        env=pods.env(
            {
                "OLLAMA_PROBE_HOST": OLLAMA_REPLICAS,
                "OLLAMA_PROBE_PORT": str(AGENT_PORT),
                "OLLAMA_PROBE_REPLICAS": str(replicas),
                "OLLAMA_PROBE_REVISION": version,
                "OLLAMA_PROBE_MODELS": json.dumps(dict(models)),
                "OLLAMA_PROBE_MIN_CONTEXT": str(args.min_context),
                "OLLAMA_PROBE_TIMEOUT_S": str(timeout_s),
            }
        ),
        resources=pods.resources(PROBE_RESOURCES),
        security_context=pods.container_security(),
    )
    return k8s.batch.v1.Job(
        name,
        metadata=pods.metadata(CONTEXT_PROBE, namespace, named=False),
        spec=k8s.batch.v1.JobSpecArgs(
            # The probe itself waits and asks again; its first failure is the answer.
            backoff_limit=0,
            pod_failure_policy=pods.disruptions_are_no_failures(),
            template=pods.template(CONTEXT_PROBE, pods.spec(CONTEXT_PROBE, [container], [], restart_policy="Never")),
        ),
        opts=pulumi.ResourceOptions.merge(
            opts,
            pulumi.ResourceOptions(custom_timeouts=pulumi.CustomTimeouts(create=f"{timeout_s + 300}s", update=f"{timeout_s + 300}s")),
        ),
    )
