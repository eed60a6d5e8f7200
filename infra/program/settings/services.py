"""The sections of the services beside the fleet: `cache`, `apiServer` and `monitoring`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from components.contract import EVERYWHERE
from infra.program.settings.network import PodsSettings
from infra.program.settings.section import (
    Annotations,
    Bytes,
    Cidr,
    DnsLabel,
    Labels,
    Resources,
    Section,
    covers_the_internet,
    quantity,
)
from infra.program.settings.tls import HOST, TlsSettings
from infra.program.settings.way_in import WayInSettings

_ORIGIN = r"^https?://[A-Za-z0-9.\-\[\]:]{1,253}$"


class CacheSettings(Section):
    max_size: Bytes | None = None
    """Disk of its node that each model server may take at /cache for the state of conversations: vLLM's blocks as they come, llama.cpp's
    slots when it stops. Unset: none, and a conversation is read again after a restart (docs/cache.md)."""
    shared_cache: bool = False
    """One tier on a claim of storage.shared for all replicas of a model server with vLLM, in place of one on each node: what one has read
    the others need not read."""
    compression: bool = False
    """Of the state of conversations: refused, because it loses (docs/cache.md); a model server's kvCacheDtype halves it."""
    metrics_enabled: Literal[True] = True
    """Every tier has metrics."""
    max_memory: Bytes
    """Size of all entries of the cache server together. When it is full, entries are evicted."""
    eviction_policy: Literal["lru", "allkeys-lru", "allkeys-lfu", "volatile-lru", "noeviction"] = "lru"
    """Which entries of the cache server are evicted first; lru is allkeys-lru. On a disk the least recently used go first."""
    resources: Resources

    @property
    def server_policy(self) -> str:
        """As Valkey calls it."""
        return "allkeys-lru" if self.eviction_policy == "lru" else self.eviction_policy


class ApiServerSettings(Section):
    replicas: int = Field(default=2, ge=1, le=64)
    """API servers; with an autoscaler, the most that it may make."""
    autoscaled: bool = False
    """An autoscaler of yours sets the number of API servers: the stack leaves it alone."""
    hold_seconds: int = Field(default=0, ge=0, le=3600)
    """Longest wait of a request while no server has its model; 0 refuses at once, except where the fleet may scale to zero: 600."""
    queue_seconds: int = Field(default=60, ge=0, le=3600)
    """Longest wait of a request while all servers of its model are busy; 0 refuses at once."""
    service_type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    """Type of the Service, which decides how clients outside the cluster reach it."""
    node_port: int | None = Field(default=None, ge=30000, le=32767)
    """The port on every node, for NodePort."""
    service_annotations: Annotations = Field(default={})
    """Annotations of the Service, which load balancers are configured by, such as an internal address."""
    load_balancer_class: str | None = Field(default=None, pattern=r"^[a-z0-9]([a-z0-9./-]{0,250}[a-z0-9])?$")
    """Who makes the load balancer, where a cluster has several makers."""
    external_traffic_policy: Literal["Cluster", "Local"] | None = None
    """Local: a node sends clients to its own API servers alone, so that their addresses stay what they are. That is the default where
    clientCidrs names networks, because a policy would see the node's address otherwise."""
    ip_family_policy: Literal["SingleStack", "PreferDualStack", "RequireDualStack"] | None = None
    """PreferDualStack: on a cluster with IPv4 and IPv6 clients reach the Service over both; unset, over the cluster's first."""
    max_in_flight: int = Field(default=4, ge=1, le=1024)
    """Requests at once to one upstream address; more wait for queueSeconds."""
    client_cidrs: list[Cidr] = Field(default=[*EVERYWHERE], min_length=1)
    """Networks that may connect, IPv4 and IPv6; clients still need a key. Unset with wayIn: none, but its proxies."""
    host: str | None = Field(default=None, pattern=HOST)
    """The name that clients outside of the cluster use, such as models.example.com. Its DNS is yours."""
    tls: TlsSettings | None = None
    """TLS at the API server itself; unset, it speaks HTTP, and a proxy in front of it has to have TLS."""
    way_in: WayInSettings | None = None
    """An Ingress or a route of the Gateway API, by which clients come under the name of `host`."""
    cors_origins: list[Annotated[str, Field(pattern=_ORIGIN)]] = Field(default=[], max_length=32)
    """Origins whose pages may use the API from a browser, such as https://ui.example. A key in a page is a key in many hands."""
    session_headers: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]] = Field(default=[], max_length=16)
    """Headers in which clients of yours say which conversation a request belongs to, beside those that agents are known to send."""
    resources: Resources

    @model_validator(mode="after")
    def _port_fits_type(self) -> Self:
        if self.node_port is not None and self.service_type != "NodePort":
            raise ValueError(f"nodePort: got {self.node_port} with serviceType {self.service_type}, want it with NodePort only; remove it")
        if self.load_balancer_class is not None and self.service_type != "LoadBalancer":
            got = f"got {self.load_balancer_class} with serviceType {self.service_type}"
            raise ValueError(f"loadBalancerClass: {got}, want it with LoadBalancer only; remove it")
        if self.external_traffic_policy is not None and self.service_type == "ClusterIP":
            got = f"got {self.external_traffic_policy} with serviceType ClusterIP"
            raise ValueError(f"externalTrafficPolicy: {got}, want it with NodePort or LoadBalancer; remove it")
        return self

    @model_validator(mode="after")
    def _tls_and_way_in_fit(self) -> Self:
        if self.way_in is not None:
            if self.host is None:
                raise ValueError("host: got nothing with wayIn, want the name that clients use; set it")
            if self.service_type != "ClusterIP":
                raise ValueError(f"serviceType: got {self.service_type} with wayIn, want one way in; remove one of them")
            if not self.way_in.proxies and "client_cidrs" not in self.model_fields_set:
                raise ValueError("wayIn.proxies: got none, want the proxy's pods, or its networks in clientCidrs; name them")
            way = self.way_in.ingress
            if way is not None and way.passthrough and (self.tls is None or way.tls_secret is not None):
                got = "no apiServer.tls" if self.tls is None else "a certificate for the controller too"
                raise ValueError(f"wayIn.ingress.passthrough: got {got}, want TLS at the API server alone; set tls, and no tlsSecret")
        if self.tls is not None and self.tls.issuer is not None and not self.tls.issuer.service_names and self.host is None:
            raise ValueError("host: got nothing with an issuer that signs no names of Services, want a name for the certificate; set it")
        return self

    @property
    def admitted_cidrs(self) -> list[str]:
        """Networks whose addresses may connect: behind a proxy that clients come through, those that were named alone."""
        return [] if self.way_in is not None and "client_cidrs" not in self.model_fields_set else self.client_cidrs

    @property
    def knows_its_clients(self) -> bool:
        """Whether the networks that may connect are somebody's, all of them together: neither the internet nor a large part of it."""
        return not covers_the_internet(self.client_cidrs)


class PrometheusSettings(Section):
    size: Bytes = "8Gi"
    """Size of its claim; samples may take four fifths of it, and the oldest go first."""
    class_name: str | None = Field(default=None, pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")
    """StorageClass of its claim, one that is there; unset, that of storage.hot."""
    retention_days: int = Field(default=40, ge=1, le=3650)
    """Days that samples are kept, where there is room: 40 are enough to count the usage of a month that has ended."""
    clients: list[PodsSettings] = Field(default=[])
    """Pods that may ask it, such as Grafana's; nobody else can but who may forward a port of its pod. It shows the names of keys."""
    resources: Resources

    @property
    def retention_bytes(self) -> int:
        """Source: Prometheus' page on storage, which wants at most 80 to 85 % of the disk: what is written while blocks are merged does not
        count."""
        return int(quantity(self.size) * 0.8)


class ObjectivesSettings(Section):
    answered: float = Field(default=0.99, ge=0.9, le=0.9999)
    """Part of the turns that get an answer, and neither an error of the fleet nor a refusal because it is full."""
    first_token: float = Field(default=0.95, ge=0.9, le=0.9999)
    """Part of the streams whose first token comes in time."""
    first_token_seconds: Literal[1, 5, 10, 30, 60, 120, 300] = 30
    """What is in time, in seconds from the arrival of the request."""


class MonitoringSettings(Section):
    prometheus_namespace: DnsLabel = "monitoring"
    """Only pods of this namespace may scrape."""
    alert_rules: Literal["config-map", "prometheus-rule"] = "config-map"
    """Alert rules as a file in a ConfigMap, or as an object of the Prometheus operator, whose CRDs must then be there."""
    scrape: Literal["none", "pod-monitor", "pod-monitoring", "annotations"] = "none"
    """How a Prometheus of yours is told of the pods: by PodMonitors of the Prometheus operator, PodMonitorings of Google's managed one, or
    annotations (`prometheus.io/scrape`, `port` and `path`). The CRDs must be there; prometheusNamespace is where it runs."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least of what the services say of themselves. `debug` names the server of each request, and Ollama says more; above `info` a
    request has no line. A change starts the services again, one by one."""
    labels: Labels = Field(default={})
    """Further labels of monitors and rules, which your Prometheus selects them by, such as `release: kube-prometheus-stack`."""
    objectives: ObjectivesSettings = ObjectivesSettings()
    """What the fleet promises, by model, over 30 days. Alerts tell when it goes wrong faster than that allows."""
    prometheus: PrometheusSettings | None = None
    """A Prometheus of the stack's own, beside any other: it keeps the metrics, judges the alert rules, and is what make usage reads."""
    resources: Resources
