"""The Python model server."""

from dataclasses import dataclass

import pulumi
import pulumi_kubernetes as k8s

from . import containers, objects, pods
from .cache import access
from .contract import MODEL_SERVER, MODEL_VERSION_ANNOTATION, PORTS, type_token
from .models import STORE_PATH
from .ollama_agent import LOAD_S
from .workload import ORDINARY, WorkloadArgs

core = k8s.core.v1
_DRAIN_S = 120
_START_S = LOAD_S + 300
"""Seconds from a pod to its first answer: to pull the image, and to load the model."""


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
    priority_class: pulumi.Input[str] | None = None
    workload: WorkloadArgs = ORDINARY


class ModelServer(pulumi.ComponentResource):
    """Deployment and headless Service of the model server. It reads the shared store and writes to nothing but the cache server.

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
        # One after another.
        whole = f"{_START_S * args.replicas}s"
        slow = pulumi.ResourceOptions(custom_timeouts=pulumi.CustomTimeouts(create=whole, update=whole))
        pods.deployment(
            f"{name}-servers",
            args.component,
            args.namespace,
            _pod(args),
            pulumi.ResourceOptions.merge(runs, slow),
            replicas=args.replicas,
            annotations={MODEL_VERSION_ANNOTATION: args.model_version},
            progress_deadline_s=_START_S,
        )
        objects.disruption_budget(f"{name}-budget", args.component, args.namespace, child)
        self.url = service.metadata.name.apply(lambda host: f"http://{host}:{PORTS[MODEL_SERVER]}")
        self.register_outputs({"url": self.url})


def _pod(args: ModelServerArgs) -> core.PodSpecArgs:
    tmp, tmp_mount = containers.scratch()
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
                "MODEL_SERVER_PROMPT_CACHE_MIB": str(args.prompt_cache_bytes // 2**20),
            }
        ),
        ports=[core.ContainerPortArgs(name="http", container_port=port)],
        resources=containers.resources(args.resources),
        security_context=containers.security(),
        volume_mounts=[tmp_mount, cache.mount, core.VolumeMountArgs(name="models", mount_path=STORE_PATH, read_only=True)],
        readiness_probe=containers.http_probe("/ready", port),
        # As long as an Ollama server may take for one model: weights are read over the network, through the page cache.
        startup_probe=containers.http_probe("/ready", port, period_s=2, failures=LOAD_S // 2),
        liveness_probe=containers.liveness(port),
    )
    placement = pods.Placement(workload=args.workload, priority_class=args.priority_class)
    return pods.spec(args.component, [container], [tmp, cache.volume, store], placement, grace_s=_DRAIN_S + 15)
