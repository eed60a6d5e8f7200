"""The agent beside each Ollama server, and the Job that asks all agents whether the fleet keeps its promise."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_kubernetes as k8s

from . import containers, objects, pods
from .contract import AGENT_CONTROL_PORT, AGENT_PORT, CONTEXT_PROBE, OLLAMA, OLLAMA_REPLICAS, labels, selector
from .models import STORE_PATH
from .workload import ORDINARY, WorkloadArgs

core = k8s.core.v1
AGENT = "ollama-agent"
AGENT_RESOURCES = containers.ResourceArgs(cpu="20m", memory="128Mi")
PROBE_RESOURCES = containers.ResourceArgs(cpu="20m", memory="128Mi")
LOAD_S = 1800
"""Longest load of one model: 130 GB at the 72 MB/s that were seen over a network file system (ollama issue 5826)."""
_START_S = 900
"""Seconds that one replica of a rollout may take after the drain: to pull images, copy the models, and load them."""
_LEAST_S = 3600
"""Least time for a rollout, in seconds: the first deployment copies every model."""
_GRACE_MARGIN_S = 30
"""Seconds from the end of the longest drain to the moment when Kubernetes kills the pod."""


@dataclass(frozen=True, kw_only=True)
class AgentArgs:
    """Inputs of the agent and the probe."""

    image: pulumi.Input[str]
    drain_s: int
    """Longest wait for requests in flight when a replica has to stop."""
    min_context: int
    """Tokens that every replica must hold for every model that chats."""
    embedding: Sequence[str] = ()
    """Models that do not chat, of which only their own context is asked."""
    probe: WorkloadArgs = ORDINARY
    """Of the Job that asks the agents."""

    @property
    def grace_s(self) -> int:
        return self.drain_s + _GRACE_MARGIN_S


def rollout_s(replicas: int, drain_s: int) -> int:
    """Longest time in which every replica is replaced, one after the other."""
    return max(_LEAST_S, replicas * (drain_s + _START_S))


def revision(parts: Mapping[str, Any], images: Sequence[pulumi.Input[str]]) -> pulumi.Output[str]:
    """A name for everything that the replicas are made from. It is in their pods, so that the probe can tell new replicas from old ones.

    References of images are a part of the name, and not of its digest. Otherwise every edit of a service would change the digest in the
    renderings that are reviewed.
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
    replica = containers.field("OLLAMA_AGENT_REPLICA", "metadata.name")
    return core.ContainerArgs(
        name=AGENT,
        image=args.image,
        restart_policy="Always",
        env=[*containers.env(values), replica, *containers.env({"OLLAMA_AGENT_GPU": "1"} if gpu else {})],
        ports=[
            core.ContainerPortArgs(name="metrics", container_port=AGENT_PORT),
            core.ContainerPortArgs(name="control", container_port=AGENT_CONTROL_PORT),
        ],
        resources=containers.resources(AGENT_RESOURCES),
        security_context=containers.security(),
        volume_mounts=[core.VolumeMountArgs(name="models", mount_path=STORE_PATH, read_only=True)],
        startup_probe=containers.http_probe("/health", AGENT_CONTROL_PORT, period_s=1, failures=60),
        readiness_probe=models_are_loaded() if gpu else containers.http_probe("/health", AGENT_CONTROL_PORT),
        liveness_probe=containers.liveness(AGENT_CONTROL_PORT),
    )


def models_are_loaded() -> core.ProbeArgs:
    """Readiness as the agent knows it."""
    return containers.http_probe("/ready", AGENT_CONTROL_PORT, period_s=2, failures=2)


def drain_hook() -> core.LifecycleArgs:
    """Called before SIGTERM, because Ollama cuts its streams at SIGTERM."""
    get = core.HTTPGetActionArgs(path="/drain", port=AGENT_CONTROL_PORT)
    return core.LifecycleArgs(pre_stop=core.LifecycleHandlerArgs(http_get=get))


def replicas_service(name: str, namespace: pulumi.Input[str], opts: pulumi.ResourceOptions) -> None:
    """Every replica's address, ready or not. Clients of models use the other Service, which has the ready ones."""
    core.Service(
        name,
        metadata=k8s.meta.v1.ObjectMetaArgs(
            name=OLLAMA_REPLICAS, namespace=namespace, labels=labels(OLLAMA), annotations=dict(objects.SKIP_AWAIT)
        ),
        spec=core.ServiceSpecArgs(
            type="ClusterIP",
            cluster_ip="None",
            selector=selector(OLLAMA),
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
        env=containers.env(
            {
                "OLLAMA_PROBE_HOST": OLLAMA_REPLICAS,
                "OLLAMA_PROBE_PORT": str(AGENT_PORT),
                "OLLAMA_PROBE_REPLICAS": str(replicas),
                "OLLAMA_PROBE_REVISION": version,
                "OLLAMA_PROBE_MODELS": json.dumps(dict(models)),
                "OLLAMA_PROBE_MIN_CONTEXT": str(args.min_context),
                **({"OLLAMA_PROBE_EMBEDDING": json.dumps(list(args.embedding))} if args.embedding else {}),
                "OLLAMA_PROBE_TIMEOUT_S": str(timeout_s),
            }
        ),
        resources=containers.resources(PROBE_RESOURCES),
        security_context=containers.security(),
    )
    pod = pods.spec(CONTEXT_PROBE, [container], [], pods.Placement(workload=args.probe), restart_policy="Never")
    return k8s.batch.v1.Job(
        name,
        metadata=objects.metadata(CONTEXT_PROBE, namespace, named=False),
        spec=k8s.batch.v1.JobSpecArgs(
            # The probe itself waits and asks again, so its first failure is final.
            backoff_limit=0,
            pod_failure_policy=pods.disruptions_are_no_failures(),
            template=pods.template(CONTEXT_PROBE, pod),
        ),
        opts=pulumi.ResourceOptions.merge(
            objects.account(f"{name}-account", CONTEXT_PROBE, namespace, opts, args.probe),
            pulumi.ResourceOptions(custom_timeouts=pulumi.CustomTimeouts(create=f"{timeout_s + 300}s", update=f"{timeout_s + 300}s")),
        ),
    )
