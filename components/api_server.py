"""The API server: the one door for clients."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pulumi
import pulumi_kubernetes as k8s

from . import containers, objects, pods
from .cache import access
from .contract import API_METRICS_PORT, API_SERVER, PORTS, labels, type_token
from .tls import TlsArgs
from .tls import secret as tls_secret
from .way_in import HttpRouteArgs, IngressArgs, LimitsArgs, http_route, ingress
from .workload import ORDINARY, WorkloadArgs

core = k8s.core.v1
_DRAIN_S = 600
"""Longest answer that a rollout waits for: agents ask for minutes of generation."""
_BODY_BYTES = 32 * 2**20
"""Of the largest request. The process has the same default; with a proxy in front it is told, so that both have one figure."""
_SERVER_SILENCE_S = 900
"""Longest silence of a server. The same holds for it."""
_SLACK_S = 30
"""That a proxy waits longer than the API server, whose own refusal is better."""
_ALIASES, _KEYS, _POOL_KEYS = "api-server-aliases", "api-server-keys", "api-server-pool-keys"
"""Constants: the pods that mount them must not roll when they change."""
_TLS_DIR = "/etc/tls"
_NEVER_FEWER = k8s.apps.v1.DeploymentStrategyArgs(rolling_update=k8s.apps.v1.RollingUpdateDeploymentArgs(max_unavailable=0, max_surge=1))
"""A rollout makes a new pod before an old one goes."""


@dataclass(frozen=True, kw_only=True)
class ApiServerArgs:
    """Inputs of ApiServer."""

    namespace: pulumi.Input[str]
    image: pulumi.Input[str]
    routes: Mapping[str, Mapping[str, str | int]]
    """Model id to `{"url", "model", "max_in_flight", "slots", "cached_tokens"}`. The last two are what one server keeps of conversations:
    one in each slot, and others of so many tokens together. Of a pool of others: `{"pool", "url", "model", "max_in_flight",
    "context_length", "session_header", "ca"}`."""
    keys: pulumi.Input[list[str]] = field(default_factory=list)
    """API keys without names, a Pulumi secret: they are `key-1`, `key-2`, … by their order, and may use everything."""
    named_keys: pulumi.Input[Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    """Name to `{"key", "owner", "expires", "models", "requestsPerMinute", "tokensPerMinute", "concurrency", "priority"}`, a Pulumi secret;
    only the key is required. With the provider's enableSecretMutable a change of them restarts nothing."""
    pool_keys: pulumi.Input[str] | None = None
    """JSON map of a route's `pool` to its key, a Pulumi secret. None: no pool asks for one. With the provider's enableSecretMutable a
    change of them restarts nothing."""
    aliases: Mapping[str, Mapping[str, str | int]] = field(default_factory=dict)
    """Other name of a model to `{"model", "next", "share"}`: the share of conversations, in percent, that goes to the next one. With the
    provider's enableConfigMapMutable a change of them restarts nothing."""
    replicas: int | None
    """None: one at first, and an autoscaler owns the number."""
    autoscaled: bool = False
    """An autoscaler owns the number, and `replicas` is how many there are at first."""
    hold_s: int = 0
    """Longest wait in seconds of a request for a model that no server has; 0 refuses at once."""
    queue_s: int = 60
    """Longest wait in seconds of a request for a place at servers that are busy; 0 refuses at once."""
    cors_origins: Sequence[str] = ()
    """Origins whose pages may use the API from a browser, such as https://ui.example."""
    session_headers: Sequence[str] = ()
    """Headers that say which conversation a request belongs to, before those that are known."""
    cache_secret: pulumi.Input[str] | None = None
    """Secret with the password of the cache server's user. None: there is no cache server, and each API server keeps to its share of the
    limits of a key."""
    cache_user: str | None = None
    """A user of CacheServer, whose name is the key of its password. None: the default user, whose password is the key `password`."""
    resources: containers.ResourceArgs
    service_type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    node_port: int | None = None
    exposure: objects.ExposureArgs | None = None
    tls: TlsArgs | None = None
    """None: HTTP without it."""
    way_in: IngressArgs | HttpRouteArgs | None = None
    """By which clients from outside come, beside the Service."""
    priority_class: pulumi.Input[str] | None = None
    workload: WorkloadArgs = ORDINARY


class ApiServer(pulumi.ComponentResource):
    """Deployment, Service, keys and disruption budget of the API server.

    For example:

        route = {"url": "http://ollama:11434", "model": "qwen3-coder:30b", "max_in_flight": 4}
        api = ApiServer("api", ApiServerArgs(namespace="fleet", image="registry.example.com/api-server@sha256:" + 64 * "0",
                                             named_keys=pulumi.Output.secret({"team": {"key": "sixteen-or-more-characters"}}),
                                             routes={"qwen3-coder:30b": route}, replicas=2,
                                             resources=ResourceArgs(cpu="1", memory="512Mi"), priority_class="gateway-priority"))
        pulumi.export("service", api.service_name)
    """

    service_name: pulumi.Output[str]
    load_balancer: pulumi.Output[str | None]
    """Address of the load balancer; None without one, and until the provider has assigned it."""

    def __init__(self, name: str, args: ApiServerArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(type_token("ApiServer"), name, {}, opts)
        child = pulumi.ResourceOptions(parent=self)
        secret = core.Secret(
            f"{name}-keys",
            metadata=k8s.meta.v1.ObjectMetaArgs(name=_KEYS, namespace=args.namespace, labels=labels(API_SERVER)),
            string_data={"keys": pulumi.Output.secret(pulumi.Output.all(args.keys, args.named_keys)).apply(lambda each: _hashed(*each))},
            opts=child,
        )
        aliases = core.ConfigMap(
            f"{name}-aliases",
            metadata=k8s.meta.v1.ObjectMetaArgs(name=_ALIASES, namespace=args.namespace, labels=labels(API_SERVER)),
            data={"aliases": json.dumps(args.aliases, sort_keys=True, indent=1)},
            opts=child,
        )
        ports, kind = {"http": PORTS[API_SERVER]}, args.service_type
        service = objects.service(
            f"{name}-service", API_SERVER, args.namespace, ports, child, kind=kind, node_port=args.node_port, exposure=args.exposure
        )
        space = args.namespace
        certificate = tls_secret(f"{name}-tls", args.tls, space, child) if args.tls is not None else None
        _way_in(name, args, certificate, child)
        pool_keys = _pool_keys(name, args, child)
        pod = _pod(args, secret.metadata.name, aliases.metadata.name, certificate, pool_keys)
        runs = objects.account(f"{name}-account", API_SERVER, space, child, args.workload)
        runs = pods.scaled_by_others(runs) if args.autoscaled else runs
        pods.deployment(f"{name}-servers", API_SERVER, space, pod, runs, replicas=args.replicas, strategy=_NEVER_FEWER)
        objects.disruption_budget(f"{name}-budget", API_SERVER, args.namespace, child)
        self.service_name = service.metadata.name
        asked = args.service_type == "LoadBalancer"
        self.load_balancer = service.status.apply(_address) if asked else pulumi.Output.from_input(None)
        self.register_outputs({"service_name": self.service_name})


def _pool_keys(name: str, args: ApiServerArgs, opts: pulumi.ResourceOptions) -> pulumi.Input[str] | None:
    """Name of the Secret with the keys of pools; None without any."""
    if args.pool_keys is None:
        return None
    meta = k8s.meta.v1.ObjectMetaArgs(name=_POOL_KEYS, namespace=args.namespace, labels=labels(API_SERVER))
    return core.Secret(
        f"{name}-pool-keys", metadata=meta, string_data={"keys": pulumi.Output.secret(args.pool_keys)}, opts=opts
    ).metadata.name


def _hashed(keys: Sequence[str], named: Mapping[str, Mapping[str, Any]]) -> str:
    """The file that the API server reads: whoever reads the Secret learns no key (api_server/keys.py)."""
    unnamed: dict[str, Mapping[str, Any]] = {f"key-{number}": {"key": key} for number, key in enumerate(dict.fromkeys(keys), 1)}
    entries = {
        name: {
            "hash": hashlib.blake2b(entry["key"].strip().encode(), digest_size=32).hexdigest(),
            **{part: value for part, value in entry.items() if part != "key"},
        }
        for name, entry in {**unnamed, **named}.items()
    }
    return json.dumps(entries, sort_keys=True, indent=1)


def _way_in(name: str, args: ApiServerArgs, certificate: pulumi.Input[str] | None, opts: pulumi.ResourceOptions) -> None:
    match args.way_in:
        case IngressArgs():
            limits = LimitsArgs(body_bytes=_BODY_BYTES, silent_s=args.hold_s + args.queue_s + _SERVER_SILENCE_S + _SLACK_S)
            ingress(f"{name}-ingress", args.way_in, limits, certificate, args.namespace, opts)
        case HttpRouteArgs():
            http_route(f"{name}-route", args.way_in, args.tls, args.namespace, opts)
        case None:
            pass


def _limits(args: ApiServerArgs) -> dict[str, str]:
    """What a proxy in front was told."""
    if args.way_in is None:
        return {}
    return {"API_SERVER_MAX_BODY_BYTES": str(_BODY_BYTES), "API_SERVER_REQUEST_TIMEOUT_S": str(_SERVER_SILENCE_S)}


def _address(status: core.outputs.ServiceStatus | None) -> str | None:
    """A rendering has no status, and a new Service has no address."""
    ingress = status.load_balancer.ingress if status and status.load_balancer else None
    return (ingress[0].hostname or ingress[0].ip) if ingress else None


def _listed(name: str, values: Sequence[str]) -> dict[str, str]:
    return {name: ",".join(values)} if values else {}


def _pod(
    args: ApiServerArgs,
    keys_secret: pulumi.Input[str],
    aliases_config: pulumi.Input[str],
    certificate: pulumi.Input[str] | None,
    pool_keys: pulumi.Input[str] | None,
) -> core.PodSpecArgs:
    tmp, tmp_mount = containers.scratch()
    keys, keys_mount = containers.secret_file("keys", keys_secret, "/etc/api-keys")
    aliases, aliases_mount = containers.config_file("aliases", aliases_config, "/etc/aliases")
    volumes, mounts, secured = [tmp, keys, aliases], [tmp_mount, keys_mount, aliases_mount], certificate is not None
    cache = access(args.cache_secret, args.cache_user) if args.cache_secret is not None else None
    if cache is not None:
        volumes, mounts = [*volumes, cache.volume], [*mounts, cache.mount]
    if certificate is not None:
        volume, mount = containers.secret_file("tls", certificate, _TLS_DIR)
        volumes, mounts = [*volumes, volume], [*mounts, mount]
    if pool_keys is not None:
        volume, mount = containers.secret_file("pool-keys", pool_keys, "/etc/pool-keys")
        volumes, mounts = [*volumes, volume], [*mounts, mount]
    port = PORTS[API_SERVER]
    container = core.ContainerArgs(
        name=API_SERVER,
        image=args.image,
        env=containers.env(
            {
                **containers.HOME,
                "API_SERVER_PORT": str(port),
                "API_SERVER_METRICS_PORT": str(API_METRICS_PORT),
                "API_SERVER_KEYS_FILE": "/etc/api-keys/keys",
                "API_SERVER_ALIASES_FILE": "/etc/aliases/aliases",
                "API_SERVER_ROUTES": json.dumps(args.routes, sort_keys=True),
                "API_SERVER_HOLD_S": str(args.hold_s),
                "API_SERVER_QUEUE_S": str(args.queue_s),
                "API_SERVER_DRAIN_S": str(_DRAIN_S),
                **({"API_SERVER_CACHE_URL": cache.url, "API_SERVER_CACHE_PASSWORD_FILE": cache.password_file} if cache else {}),
                **({"API_SERVER_GATEWAYS": str(args.replicas)} if (args.replicas or 1) > 1 else {}),
                **_listed("API_SERVER_CORS_ORIGINS", args.cors_origins),
                **_listed("API_SERVER_SESSION_HEADERS", args.session_headers),
                **({"API_SERVER_POOL_KEYS_FILE": "/etc/pool-keys/keys"} if pool_keys is not None else {}),
                **_limits(args),
                **({"API_SERVER_TLS_DIR": _TLS_DIR, **_listed("API_SERVER_TLS_NAMES", args.tls.names)} if args.tls else {}),
            }
        ),
        ports=[
            core.ContainerPortArgs(name="http", container_port=port),
            core.ContainerPortArgs(name="metrics", container_port=API_METRICS_PORT),
        ],
        resources=containers.resources(args.resources),
        security_context=containers.security(),
        volume_mounts=mounts,
        readiness_probe=containers.http_probe("/ready", port, period_s=2, tls=secured),
        startup_probe=containers.http_probe("/health", port, period_s=1, failures=60, tls=secured),
        liveness_probe=containers.liveness(port, tls=secured),
    )
    placement = pods.Placement(workload=args.workload, priority_class=args.priority_class)
    return pods.spec(API_SERVER, [container], volumes, placement, grace_s=_DRAIN_S + 15)
