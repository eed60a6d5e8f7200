"""The model server: our supervisor, and llama.cpp or vLLM behind it."""

from dataclasses import dataclass

import pulumi
import pulumi_kubernetes as k8s

from . import containers, gpu, objects, pods
from .cache import access
from .contract import MODEL_SERVER, MODEL_VERSION_ANNOTATION, PORTS, RUNTIME_ANNOTATION, type_token
from .models import STORE_PATH
from .ollama_agent import LOAD_S
from .workload import ORDINARY, WorkloadArgs

apps = k8s.apps.v1
core = k8s.core.v1
_DRAIN_S = 120
_PULL_S, _PULL_VLLM_S = 300, 1200
"""Seconds for an image to come: vLLM's has 10 GB."""
_READ_BYTES_S = 18_000_000
"""Of weights that come over a network file system: a quarter of the 72 MB/s that one reader was seen to have (ollama issue 5826), for
several replicas read at once."""
_BEGIN_S, _BEGIN_VLLM_S = 600, 900
"""Seconds beside the reading: a first answer on a busy CPU; and vLLM imports PyTorch, compiles, and captures CUDA graphs."""
_CACHE_PATH, _CACHE_SIZE = "/var/cache/vllm", "6Gi"
"""What vLLM compiles."""
VLLM_DISK = "8Gi"
"""The node's own disk that a pod may use, for that and all else. By the namespace's default it would be evicted for what it compiles."""
_LAST_WORDS = "/dev/termination-log"
"""Where the kubelet looks for what a container that ended has to say: its own default."""


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
    cache_secret: pulumi.Input[str]
    """Secret with the password of the cache server's user."""
    cache_user: str | None = None
    """A user of CacheServer, whose name is the key of its password. None: the default user, whose password is the key `password`."""
    replicas: int
    resources: containers.ResourceArgs
    model: str
    model_version: pulumi.Input[str]
    """Another one restarts the servers: they keep the weights mapped, and an old file goes once nothing names it."""
    model_id: str
    context_length: int
    parallel: int
    max_queue: int
    prompt_cache_bytes: int = 256 * 2**20
    """Host memory for old prompts."""
    model_bytes: int | None = None
    """Size of the weights, which the time for a start follows. None: half an hour, whatever the size."""
    vllm: VllmArgs | None = None
    """None: llama.cpp."""
    llama_server: str = ""
    """Path of llama.cpp's own server in the image, for GPUs; empty: the build for CPUs of the image `model-server`."""
    runtime_class: pulumi.Input[str] | None = None
    """Of pods with GPUs. Empty: the nodes' default runtime is wanted; that is noted on the Deployment, for the policy pack."""
    claim: gpu.ClaimArgs | None = None
    """The GPUs of each pod, where they are claimed."""
    priority_class: pulumi.Input[str] | None = None
    workload: WorkloadArgs = ORDINARY


class ModelServer(pulumi.ComponentResource):
    """Deployment and headless Service of the model server. It reads the shared store and writes to nothing but the cache server.

    With GPUs a rollout takes one pod down before the next one comes, since there may be no GPU to spare.

    For example:

        server = ModelServer("server", ModelServerArgs(namespace="fleet", image="registry.example.com/model-server@sha256:" + 64 * "0",
                                                       shared_claim="shared-models", cache_secret="cache-auth", replicas=2,
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
        ready_s = _start_s(args) + (_PULL_VLLM_S if args.vllm else _PULL_S)
        # One after another.
        whole = f"{ready_s * args.replicas}s"
        slow = pulumi.ResourceOptions(custom_timeouts=pulumi.CustomTimeouts(create=whole, update=whole))
        pods.deployment(
            f"{name}-servers",
            args.component,
            args.namespace,
            _pod(args, claimed),
            pulumi.ResourceOptions.merge(runs, slow),
            replicas=args.replicas,
            annotations={MODEL_VERSION_ANNOTATION: args.model_version},
            noted={RUNTIME_ANNOTATION: "node-default"} if args.runtime_class == "" else None,
            strategy=_IN_PLACE if args.resources.gpus else None,
            progress_deadline_s=ready_s,
        )
        objects.disruption_budget(f"{name}-budget", args.component, args.namespace, child)
        self.url = service.metadata.name.apply(lambda host: f"http://{host}:{PORTS[MODEL_SERVER]}")
        self.register_outputs({"url": self.url})


_IN_PLACE = apps.DeploymentStrategyArgs(rolling_update=apps.RollingUpdateDeploymentArgs(max_surge=0, max_unavailable=1))
"""A new pod takes the GPUs of an old one: there may be no others."""


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
        **{f"MODEL_SERVER_{name}": value for name, value in optional.items() if value},
    }


def _disk(wanted: VllmArgs | None) -> list[tuple[core.VolumeArgs, core.VolumeMountArgs]]:
    """What vLLM writes to: what it has compiled, which lives as long as the pod; and memory that its processes share."""
    if wanted is None:
        return []
    found = [containers.scratch("vllm-cache", _CACHE_PATH, _CACHE_SIZE)]
    if wanted.shm_bytes:
        shared = core.EmptyDirVolumeSourceArgs(medium="Memory", size_limit=f"{wanted.shm_bytes // 2**20}Mi")
        # Where POSIX has it, and the runtime a small one.
        mount = core.VolumeMountArgs(name="shm", mount_path="/dev/shm")  # noqa: S108
        found.append((core.VolumeArgs(name="shm", empty_dir=shared), mount))
    return found


def _pod(args: ModelServerArgs, claimed: pulumi.Input[str] | None) -> core.PodSpecArgs:
    tmp, tmp_mount = containers.scratch()
    disk = _disk(args.vllm)
    cache = access(args.cache_secret, args.cache_user)
    store = containers.claim("models", args.shared_claim, read_only=True)
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
                "MODEL_SERVER_LAST_WORDS_FILE": _LAST_WORDS,
            }
        ),
        ports=[core.ContainerPortArgs(name="http", container_port=port)],
        resources=containers.resources(args.resources, disk=VLLM_DISK if args.vllm else None),
        security_context=containers.security(),
        volume_mounts=[
            *(tmp_mount, cache.mount, core.VolumeMountArgs(name="models", mount_path=STORE_PATH, read_only=True)),
            *(mount for _, mount in disk),
        ],
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
    volumes = [tmp, cache.volume, store, *(volume for volume, _ in disk)]
    return pods.spec(args.component, [container], volumes, placement, grace_s=_DRAIN_S + 15)
