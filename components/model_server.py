"""The model server: our supervisor, and llama.cpp or vLLM behind it."""

from dataclasses import dataclass

import pulumi
import pulumi_kubernetes as k8s

from . import containers, gpu, objects, pods
from .cache import access
from .cache_tier import CacheTierArgs, tier
from .contract import (
    COPIES_ANNOTATION,
    MODEL_SERVER,
    MODEL_VERSION_ANNOTATION,
    PORTS,
    RUNTIME_ANNOTATION,
    selector,
    type_token,
)
from .models import HYDRATION_S, LOCAL_VOLUME, SHARED_PATH, STORE_PATH, LocalCopyArgs, copier, kept_claims, local_claim
from .ollama_agent import LOAD_S
from .workload import ORDINARY, WorkloadArgs

apps = k8s.apps.v1
core = k8s.core.v1
_DRAIN_S = 120
_PULL_S, _PULL_VLLM_S = 300, 1200
"""Seconds for an image to come: vLLM's has 10 GB."""
_READ_BYTES_S = 18_000_000
"""Of weights on a slow disk: a quarter of the 72 MB/s that a reader over a network was seen to have (ollama issue 5826)."""
_BEGIN_S, _BEGIN_VLLM_S = 600, 900
"""Seconds beside the reading: a first answer on a busy CPU; and vLLM imports PyTorch, compiles, and captures CUDA graphs."""
_CACHE_PATH = "/var/cache/vllm"
_COMPILED_GIB, _SCRATCH_GIB, _LOG_GIB = 6, 2, 1
"""Disk of a server with vLLM: for what it compiles, for what compilers of kernels write before they are done, and for its log."""
COMPILED = f"{_COMPILED_GIB}Gi"
"""On a server's own volume."""
NODE_DISK, _ALL_NODE_DISK = f"{_SCRATCH_GIB + _LOG_GIB}Gi", f"{_SCRATCH_GIB + _LOG_GIB + _COMPILED_GIB}Gi"
"""On the node's own disk: of a server with a volume of its own, and of one without."""
_LAST_WORDS = "/dev/termination-log"
"""Where the kubelet looks for what a container that ended has to say: its own default."""
_FIRST_READY = {"pulumi.com/waitFor": "jsonpath={.status.readyReplicas}"}
"""The field is there once a replica is ready."""
_NO_AWAIT = {"pulumi.com/waitFor": "jsonpath={.metadata.uid}"}
"""Who scales them may have taken all of them away."""


@dataclass(frozen=True, kw_only=True)
class VllmArgs:
    """vLLM as the engine, on the GPUs of `resources`: it splits every layer over all of them."""

    memory_utilization: float = 0.9
    """Part of each GPU's memory that it takes."""
    kv_cache_dtype: str = "auto"
    dtype: str = "auto"
    quantization: str = ""
    tool_call_parser: str = ""
    reasoning_parser: str = ""
    eager: bool = False
    """No CUDA graphs."""
    shm_bytes: int = 0
    """Size of /dev/shm, by which processes on several GPUs talk; 0: the runtime's own."""


@dataclass(frozen=True, kw_only=True)
class ModelServerArgs:
    """Inputs of ModelServer."""

    namespace: pulumi.Input[str]
    component: str = MODEL_SERVER
    """Name of its objects, and label of its pods: `contract.model_server(NAME)` for each but the first."""
    image: pulumi.Input[str]
    shared_claim: pulumi.Input[str]
    local: LocalCopyArgs | None = None
    """Each replica's own copy of the model. None: the servers read the shared claim."""
    hands_over: bool = False
    """A Deployment of the same name serves the model so far. It is deleted at the end of an update, so the update must not wait for more
    than one new replica: the nodes may have no room for all of both."""
    cache_secret: pulumi.Input[str]
    """Secret with the password of the cache server's user."""
    cache_user: str | None = None
    """A user of CacheServer, whose name is the key of its password. None: the default user, whose password is the key `password`."""
    replicas: int
    autoscaled: bool = False
    """An autoscaler owns the number, and `replicas` is how many there are at first. An update does not wait for them."""
    resources: containers.ResourceArgs
    model: str
    model_version: pulumi.Input[str]
    """Another one restarts the servers: they keep the weights mapped, and an old file goes once nothing names it."""
    model_id: str
    context_length: int
    parallel: int
    max_queue: int
    prompt_cache_bytes: int = 256 * 2**20
    """Host memory for old prompts, of llama.cpp."""
    offload_bytes: int = 0
    """The same of vLLM, which has them in its KV cache first."""
    tier: CacheTierArgs | None = None
    """Disk for the state of conversations."""
    model_bytes: int | None = None
    """Size of the weights, which the time for a start follows. None: half an hour, whatever the size."""
    vllm: VllmArgs | None = None
    """None: llama.cpp."""
    llama_server: str = ""
    """Path of llama.cpp's own server in the image, for GPUs; empty: the build for CPUs of the image `model-server`."""
    runtime_class: pulumi.Input[str] | None = None
    """Of pods with GPUs. Empty: the nodes' default runtime is wanted; that is noted on the StatefulSet, for the policy pack."""
    claim: gpu.ClaimArgs | None = None
    """The GPUs of each pod, where they are claimed."""
    priority_class: pulumi.Input[str] | None = None
    workload: WorkloadArgs = ORDINARY


class ModelServer(pulumi.ComponentResource):
    """A StatefulSet of model servers, each with its own node-local copy of its model, and a headless Service.

    A replica copies the model from the shared store before its server starts, hashing what it writes, or what it finds from before. The
    server reads that volume alone, and writes to nothing but the cache server.

    A rollout takes one pod down before its next one comes: to its volume, and to its GPUs.

    For example:

        image = "registry.example.com/model-server@sha256:" + 64 * "0"
        local = LocalCopyArgs(image="registry.example.com/model-sync@sha256:" + 64 * "0", storage_class="local-nvme", size="50Gi",
                              capacity_bytes=50 * 2**30, retain=True)
        server = ModelServer("server", ModelServerArgs(namespace="fleet", image=image, shared_claim="shared-models", local=local,
                                                       cache_secret="cache-auth", replicas=2,
                                                       resources=ResourceArgs(cpu="8", memory="24Gi"), model="qwen3-coder:30b",
                                                       model_version="1",
                                                       model_id="qwen3-coder-30b-cpu", context_length=32768, parallel=2, max_queue=16,
                                                       priority_class="gpu-priority"))
        pulumi.export("url", server.url)
    """

    url: pulumi.Output[str]

    def __init__(self, name: str, args: ModelServerArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(type_token("ModelServer"), name, {}, opts)
        child = pulumi.ResourceOptions(parent=self)
        service = objects.service(f"{name}-service", args.component, args.namespace, {"http": PORTS[MODEL_SERVER]}, child, headless=True)
        runs = objects.account(f"{name}-account", args.component, args.namespace, child, args.workload)
        claimed = None
        if args.claim is not None:
            claimed = gpu.claim_template(f"{name}-claim", args.component, args.claim, child)
        _servers(f"{name}-servers", args, claimed, _Disk(name, args, child), runs)
        objects.disruption_budget(f"{name}-budget", args.component, args.namespace, child)
        self.url = service.metadata.name.apply(lambda host: f"http://{host}:{PORTS[MODEL_SERVER]}")
        self.register_outputs({"url": self.url})


def _start_s(args: ModelServerArgs) -> int:
    """Seconds from a container to its first answer."""
    read_s = LOAD_S if args.model_bytes is None else args.model_bytes // _READ_BYTES_S
    return read_s + (_BEGIN_VLLM_S if args.vllm else _BEGIN_S)


def _of_engine(args: ModelServerArgs) -> dict[str, str]:
    """Variables of one engine alone."""
    wanted = args.vllm
    if wanted is None:
        found = {"MODEL_SERVER_PROMPT_CACHE_MIB": str(args.prompt_cache_bytes // 2**20)}
        return found | ({"MODEL_SERVER_LLAMA_SERVER": args.llama_server} if args.llama_server else {})
    optional = {
        "QUANTIZATION": wanted.quantization,
        "TOOL_CALL_PARSER": wanted.tool_call_parser,
        "REASONING_PARSER": wanted.reasoning_parser,
        "ENFORCE_EAGER": "1" if wanted.eager else "",
    }
    return {
        "MODEL_SERVER_ENGINE": "vllm",
        "MODEL_SERVER_TENSOR_PARALLEL": str(args.resources.gpus),
        "MODEL_SERVER_GPU_MEMORY_UTILIZATION": f"{wanted.memory_utilization:g}",
        "MODEL_SERVER_DTYPE": wanted.dtype,
        "MODEL_SERVER_KV_CACHE_DTYPE": wanted.kv_cache_dtype,
        "MODEL_SERVER_VLLM_CACHE_DIR": _CACHE_PATH,
        **({"MODEL_SERVER_OFFLOAD_MIB": str(args.offload_bytes // 2**20)} if args.offload_bytes else {}),
        **{f"MODEL_SERVER_{name}": value for name, value in optional.items() if value},
    }


class _Disk:
    """What a server writes to, beside its copy of the model: all that its pod and its StatefulSet have for that."""

    def __init__(self, name: str, args: ModelServerArgs, opts: pulumi.ResourceOptions) -> None:
        volume, self.scratch = containers.scratch(size=f"{_SCRATCH_GIB}Gi" if args.vllm else containers.SCRATCH)
        self.tier = tier(
            *(name, args.component, args.namespace, args.tier, opts),
            image=args.image,
            scratch=self.scratch,
            vllm=args.vllm is not None,
        )
        self.volumes, self.mounts = [volume, *self.tier.volumes], [self.scratch, *self.tier.mounts]
        if args.vllm is None:
            return
        # What vLLM has compiled stays with a copy of the weights, over restarts of the pod.
        kept = core.VolumeMountArgs(name=LOCAL_VOLUME, mount_path=_CACHE_PATH, sub_path="vllm-cache")
        if args.local is None:
            volume, kept = containers.scratch("vllm-cache", _CACHE_PATH, COMPILED)
            self.volumes.append(volume)
        self.mounts.append(kept)
        if args.vllm.shm_bytes:
            shared = core.EmptyDirVolumeSourceArgs(medium="Memory", size_limit=f"{args.vllm.shm_bytes // 2**20}Mi")
            # Where POSIX has it, and the runtime a small one.
            self.mounts.append(core.VolumeMountArgs(name="shm", mount_path="/dev/shm"))  # noqa: S108
            self.volumes.append(core.VolumeArgs(name="shm", empty_dir=shared))


def _servers(
    name: str, args: ModelServerArgs, claimed: pulumi.Input[str] | None, disk: _Disk, opts: pulumi.ResourceOptions
) -> apps.StatefulSet:
    # One after another.
    ready_s = HYDRATION_S + _start_s(args) + (_PULL_VLLM_S if args.vllm else _PULL_S)
    whole = f"{ready_s * args.replicas}s"
    patient = pulumi.ResourceOptions(custom_timeouts=pulumi.CustomTimeouts(create=whole, update=whole))
    slow = pulumi.ResourceOptions.merge(opts, patient)
    local = args.local
    awaited = _FIRST_READY if args.hands_over else _NO_AWAIT if args.autoscaled else {}
    noted = awaited | ({} if local is None or local.keep else {COPIES_ANNOTATION: "disposable"})
    noted |= {RUNTIME_ANNOTATION: "node-default"} if args.runtime_class == "" else {}
    claims = [*([] if local is None else [local_claim(local.storage_class, local.size)]), *disk.tier.templates]
    return apps.StatefulSet(
        name,
        metadata=objects.metadata(args.component, args.namespace, annotations=noted),
        spec=apps.StatefulSetSpecArgs(
            # The Service's name, not its Output: awaiting one from the other would deadlock.
            service_name=args.component,
            replicas=args.replicas,
            pod_management_policy="Parallel",
            selector=k8s.meta.v1.LabelSelectorArgs(match_labels=selector(args.component)),
            template=pods.template(args.component, _pod(args, claimed, disk), {MODEL_VERSION_ANNOTATION: args.model_version}),
            volume_claim_templates=claims or None,
            persistent_volume_claim_retention_policy=None if local is None else kept_claims(deleted=local.retain, scaled=local.keep),
        ),
        opts=pods.scaled_by_others(slow) if args.autoscaled else slow,
    )


def _pod(args: ModelServerArgs, claimed: pulumi.Input[str] | None, disk: _Disk) -> core.PodSpecArgs:
    cache = access(args.cache_secret, args.cache_user)
    store = core.VolumeMountArgs(name=LOCAL_VOLUME, mount_path=STORE_PATH, read_only=True)
    port = PORTS[MODEL_SERVER]
    container = core.ContainerArgs(
        name=MODEL_SERVER,
        image=args.image,
        env=containers.env(
            {
                **containers.HOME,
                "MODEL_SERVER_PORT": str(port),
                "MODEL_SERVER_MODELS_DIR": STORE_PATH,
                "MODEL_SERVER_MODEL": args.model,
                "MODEL_SERVER_MODEL_ID": args.model_id,
                "MODEL_SERVER_CONTEXT_LENGTH": str(args.context_length),
                "MODEL_SERVER_PARALLEL": str(args.parallel),
                "MODEL_SERVER_MAX_QUEUE": str(args.max_queue),
                "MODEL_SERVER_CACHE_URL": cache.url,
                "MODEL_SERVER_CACHE_PASSWORD_FILE": cache.password_file,
                "MODEL_SERVER_DRAIN_S": str(_DRAIN_S),
                **_of_engine(args),
                **disk.tier.env,
                "MODEL_SERVER_LAST_WORDS_FILE": _LAST_WORDS,
            }
        ),
        ports=[core.ContainerPortArgs(name="http", container_port=port)],
        resources=containers.resources(args.resources, disk=(NODE_DISK if args.local else _ALL_NODE_DISK) if args.vllm else None),
        security_context=containers.security(),
        volume_mounts=[*disk.mounts, cache.mount, store],
        readiness_probe=containers.http_probe("/ready", port),
        startup_probe=containers.http_probe("/ready", port, period_s=2, failures=_start_s(args) // 2),
        liveness_probe=containers.liveness(port),
        termination_message_path=_LAST_WORDS,
        # Of one that was killed before it could say anything.
        termination_message_policy="FallbackToLogsOnError",
    )
    placement = pods.Placement(
        workload=args.workload,
        runtime_class=args.runtime_class or None,
        priority_class=args.priority_class,
        claim_template=claimed,
        gpu_toleration=args.resources.gpus > 0,
    )
    volumes, init = [*disk.volumes, cache.volume], []
    if args.local is None:
        volumes.append(containers.claim(LOCAL_VOLUME, args.shared_claim, read_only=True))
    else:
        volumes.append(containers.claim("shared", args.shared_claim, read_only=True))
        shared = core.VolumeMountArgs(name="shared", mount_path=SHARED_PATH, read_only=True)
        own = core.VolumeMountArgs(name=LOCAL_VOLUME, mount_path=STORE_PATH)
        init.append(copier(args.local, args.model, [disk.scratch, shared, own]))
    init += disk.tier.sidecars
    grace_s = _DRAIN_S + disk.tier.grace_s + 15
    return pods.spec(args.component, [container], volumes, placement, init_containers=init, grace_s=grace_s)
