"""The Python model server."""

from dataclasses import dataclass

import pulumi
import pulumi_kubernetes as k8s

from . import containers, objects, pods
from .cache import access
from .contract import COPIES_ANNOTATION, MODEL_SERVER, MODEL_VERSION_ANNOTATION, PORTS, selector, type_token
from .models import HYDRATION_S, LOCAL_VOLUME, SHARED_PATH, STORE_PATH, LocalCopyArgs, copier, kept_claims, local_claim
from .ollama_agent import LOAD_S
from .workload import ORDINARY, WorkloadArgs

core = k8s.core.v1
_DRAIN_S = 120
START_S = HYDRATION_S + LOAD_S + 300
"""Seconds from a pod to its first answer: to pull the image, to copy the model to its own volume, and to load it."""
_FIRST_READY = {"pulumi.com/waitFor": "jsonpath={.status.readyReplicas}"}
"""The field is there once a replica is ready."""


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
    """A StatefulSet of model servers, each with its own node-local copy of its model, and a headless Service.

    A replica copies the model from the shared store before its server starts, hashing what it writes, or what it finds from before. The
    server reads that volume alone, and writes to nothing but the cache server.

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
        _servers(f"{name}-servers", args, runs)
        objects.disruption_budget(f"{name}-budget", args.component, args.namespace, child)
        self.url = service.metadata.name.apply(lambda host: f"http://{host}:{PORTS[MODEL_SERVER]}")
        self.register_outputs({"url": self.url})


def _servers(name: str, args: ModelServerArgs, opts: pulumi.ResourceOptions) -> k8s.apps.v1.StatefulSet:
    # One after another.
    whole = f"{START_S * args.replicas}s"
    slow = pulumi.ResourceOptions(custom_timeouts=pulumi.CustomTimeouts(create=whole, update=whole))
    local = args.local
    noted = (_FIRST_READY if args.hands_over else {}) | ({} if local is None or local.keep else {COPIES_ANNOTATION: "disposable"})
    return k8s.apps.v1.StatefulSet(
        name,
        metadata=objects.metadata(args.component, args.namespace, annotations=noted),
        spec=k8s.apps.v1.StatefulSetSpecArgs(
            # The Service's name, not its Output: awaiting one from the other would deadlock.
            service_name=args.component,
            replicas=args.replicas,
            pod_management_policy="Parallel",
            selector=k8s.meta.v1.LabelSelectorArgs(match_labels=selector(args.component)),
            template=pods.template(args.component, _pod(args), {MODEL_VERSION_ANNOTATION: args.model_version}),
            volume_claim_templates=None if local is None else [local_claim(local.storage_class, local.size)],
            persistent_volume_claim_retention_policy=None if local is None else kept_claims(deleted=local.retain, scaled=local.keep),
        ),
        opts=pulumi.ResourceOptions.merge(opts, slow),
    )


def _pod(args: ModelServerArgs) -> core.PodSpecArgs:
    tmp, tmp_mount = containers.scratch()
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
                "MODEL_SERVER_PROMPT_CACHE_MIB": str(args.prompt_cache_bytes // 2**20),
            }
        ),
        ports=[core.ContainerPortArgs(name="http", container_port=port)],
        resources=containers.resources(args.resources),
        security_context=containers.security(),
        volume_mounts=[tmp_mount, cache.mount, store],
        readiness_probe=containers.http_probe("/ready", port),
        # As long as an Ollama server may take for one model.
        startup_probe=containers.http_probe("/ready", port, period_s=2, failures=LOAD_S // 2),
        liveness_probe=containers.liveness(port),
    )
    placement = pods.Placement(workload=args.workload, priority_class=args.priority_class)
    volumes, init = [tmp, cache.volume], []
    if args.local is None:
        volumes.append(containers.claim(LOCAL_VOLUME, args.shared_claim, read_only=True))
    else:
        volumes.append(containers.claim("shared", args.shared_claim, read_only=True))
        shared = core.VolumeMountArgs(name="shared", mount_path=SHARED_PATH, read_only=True)
        own = core.VolumeMountArgs(name=LOCAL_VOLUME, mount_path=STORE_PATH)
        init.append(copier(args.local, args.model, [tmp_mount, shared, own]))
    return pods.spec(args.component, [container], volumes, placement, init_containers=init, grace_s=_DRAIN_S + 15)
