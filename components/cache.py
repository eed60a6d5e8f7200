"""The cache server: exact answers, embeddings, and what API servers tell each other; never model weights or KV blocks."""

import hashlib
import hmac
from dataclasses import dataclass

import pulumi
import pulumi_kubernetes as k8s

from . import containers, objects, pods
from .contract import API_SERVER, CACHE_SERVER, METRICS_EXPORTER, MODEL_SERVER, PORTS, type_token
from .workload import ORDINARY, WorkloadArgs

core = k8s.core.v1
_ROLES = {
    # Answers of model_server/cache.py.
    MODEL_SERVER: "~answer:* +get +set",
    # The stream of api_server/settling.py, and what api_server/embeddings.py keeps.
    API_SERVER: "~gateways:* ~embedding:* +xadd +xread +xrange +mget +set",
    METRICS_EXPORTER: "+info",
}
"""Who connects, with which keys and commands. Source of the words: valkey.io/topics/acl."""


@dataclass(frozen=True, kw_only=True)
class CacheServerArgs:
    """Inputs of CacheServer."""

    namespace: pulumi.Input[str]
    image: pulumi.Input[str]
    password: pulumi.Input[str]
    """A Pulumi secret."""
    max_memory_bytes: int
    eviction_policy: str = "allkeys-lru"
    """A `maxmemory-policy` of Valkey."""
    resources: containers.ResourceArgs
    workload: WorkloadArgs = ORDINARY


class CacheServer(pulumi.ComponentResource):
    """One Valkey without persistence: a restart empties it, and its clients bypass it meanwhile. Each of them is a user of its own, who can
    do what that client does.

    For example:

        cache = CacheServer("cache", CacheServerArgs(namespace="fleet", image="registry.example.com/cache-server@sha256:" + 64 * "0",
                                                     password=pulumi.Output.secret("sixteen-or-more-characters"),
                                                     max_memory_bytes=2**30, eviction_policy="allkeys-lru",
                                                     resources=ResourceArgs(cpu="250m", memory="1200Mi")))
        pulumi.export("secret", cache.secret_name)
    """

    secret_name: pulumi.Output[str]
    """Secret with the keys `password` (of the user `default`, who may do everything) and `auth.conf` (for the server)."""
    users_secret_name: pulumi.Output[str]
    """Secret with the passwords of the users `model-server`, `api-server` and `metrics-exporter` under their names, and `users.conf`."""

    def __init__(self, name: str, args: CacheServerArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(type_token("CacheServer"), name, {}, opts)
        child = pulumi.ResourceOptions(parent=self)
        password = pulumi.Output.secret(args.password)
        # All are named by Pulumi: a changed value is a new object, and the pods that use it roll.
        secret = core.Secret(
            f"{name}-auth",
            metadata=objects.metadata(CACHE_SERVER, args.namespace, named=False),
            string_data={"password": password, "auth.conf": password.apply(lambda value: f"requirepass {value}\n")},
            immutable=True,
            opts=child,
        )
        users = core.Secret(
            f"{name}-users",
            metadata=objects.metadata(CACHE_SERVER, args.namespace, named=False),
            string_data=password.apply(_users),
            immutable=True,
            opts=child,
        )
        config = core.ConfigMap(
            f"{name}-config",
            metadata=objects.metadata(CACHE_SERVER, args.namespace, named=False),
            data={"cache.conf": cache_conf(args.max_memory_bytes, args.eviction_policy)},
            immutable=True,
            opts=child,
        )
        objects.service(f"{name}-service", CACHE_SERVER, args.namespace, {"redis": PORTS[CACHE_SERVER]}, child)
        pod = _pod(args, secret.metadata.name, users.metadata.name, config.metadata.name)
        runs = objects.account(f"{name}-account", CACHE_SERVER, args.namespace, child, args.workload)
        pods.deployment(f"{name}-server", CACHE_SERVER, args.namespace, pod, runs)
        self.secret_name, self.users_secret_name = secret.metadata.name, users.metadata.name
        self.register_outputs({"secret_name": self.secret_name, "users_secret_name": self.users_secret_name})


@dataclass(frozen=True)
class Access:
    """How a pod reaches the cache server."""

    url: str
    password_file: str
    volume: core.VolumeArgs
    mount: core.VolumeMountArgs


def access(secret: pulumi.Input[str], user: str | None) -> Access:
    """For a client that gets its own password alone. `user`: None is the default user."""
    key, path = user or "password", "/etc/cache-auth"
    volume, mount = containers.secret_key("cache-auth", secret, key, path)
    return Access(f"redis://{f'{user}@' if user else ''}{CACHE_SERVER}:{PORTS[CACHE_SERVER]}/0", f"{path}/{key}", volume, mount)


def role_password(password: str, role: str) -> str:
    """Of one user. Whoever knows it can work out neither the password that it was made from nor another user's (HMAC-SHA-256)."""
    return hmac.new(password.encode(), role.encode(), hashlib.sha256).hexdigest()


def _users(password: str) -> dict[str, str]:
    return {"users.conf": users_conf(password), **{role: role_password(password, role) for role in _ROLES}}


def users_conf(password: str) -> str:
    """The users, with digests of their passwords."""

    def user(name: str, secret: str, rights: str) -> str:
        return f"user {name} reset on #{hashlib.sha256(secret.encode()).hexdigest()} {rights}\n"

    # A client says who it is and asks for its own name before anything else; that shows and changes nothing.
    roles = (user(role, role_password(password, role), f"{rights} +ping +client|setinfo") for role, rights in _ROLES.items())
    return "".join(roles)


def cache_conf(max_memory_bytes: int, eviction_policy: str) -> str:
    """The server's configuration file. Source of the keys: valkey.conf of Valkey 9.1."""
    lines = [
        f"port {PORTS[CACHE_SERVER]}",
        # All addresses of both families. The dash: a kernel without IPv6 is no error.
        "bind * -::*",
        "protected-mode yes",
        f"maxmemory {max_memory_bytes}",
        f"maxmemory-policy {eviction_policy}",
        'save ""',
        "appendonly no",
        "dir /tmp",
        "include /etc/cache-auth/auth.conf",
        "include /etc/cache-users/users.conf",
    ]
    return "\n".join(lines) + "\n"


def _pod(args: CacheServerArgs, secret: pulumi.Input[str], users: pulumi.Input[str], config: pulumi.Input[str]) -> core.PodSpecArgs:
    tmp, tmp_mount = containers.scratch()
    auth, auth_mount = containers.secret_file("auth", secret, "/etc/cache-auth")
    roles, roles_mount = containers.secret_key("users", users, "users.conf", "/etc/cache-users")
    conf, conf_mount = containers.config_file("config", config, "/etc/cache")
    port = core.TCPSocketActionArgs(port=PORTS[CACHE_SERVER])
    container = core.ContainerArgs(
        name=CACHE_SERVER,
        image=args.image,
        args=["/etc/cache/cache.conf"],
        ports=[core.ContainerPortArgs(name="redis", container_port=PORTS[CACHE_SERVER])],
        resources=containers.resources(args.resources),
        security_context=containers.security(),
        volume_mounts=[tmp_mount, auth_mount, roles_mount, conf_mount],
        readiness_probe=core.ProbeArgs(tcp_socket=port, period_seconds=5),
        liveness_probe=core.ProbeArgs(tcp_socket=port, period_seconds=10, failure_threshold=6),
    )
    return pods.spec(CACHE_SERVER, [container], [tmp, auth, roles, conf], pods.Placement(workload=args.workload))
