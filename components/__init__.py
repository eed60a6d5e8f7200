"""The deployable parts of a model fleet, as Pulumi ComponentResources. They know no stack and read no configuration."""

from .activator import Activator, ActivatorArgs, ScaleArgs
from .api_server import ApiServer, ApiServerArgs
from .cache import CacheServer, CacheServerArgs
from .cache_tier import CacheTierArgs
from .containers import ResourceArgs
from .governance import Governance, GovernanceArgs
from .gpu import ClaimArgs, GpuRuntime, GpuRuntimeArgs, PriorityClassesArgs, SharingArgs
from .image_trust import ImageTrust, ImageTrustArgs
from .images import RuntimeImages, RuntimeImagesArgs
from .model_server import ModelServer, ModelServerArgs, VllmArgs
from .models import LocalCopyArgs, ModelStore, ModelStoreArgs
from .monitoring import Monitoring, MonitoringArgs
from .network import DnsArgs, Network, NetworkArgs, OriginArgs, PodsArgs, PoolArgs
from .objectives import ObjectivesArgs
from .objects import ExposureArgs
from .ollama import OllamaFleet, OllamaFleetArgs
from .ollama_agent import AgentArgs
from .prometheus import Prometheus, PrometheusArgs
from .storage import Storage, StorageArgs, TierArgs
from .tls import IssuerArgs, PairArgs, TlsArgs
from .way_in import HttpRouteArgs, IngressArgs
from .workload import TolerationArgs, WorkloadArgs

__all__ = [
    "Activator",
    "ActivatorArgs",
    "AgentArgs",
    "ApiServer",
    "ApiServerArgs",
    "CacheServer",
    "CacheServerArgs",
    "CacheTierArgs",
    "ClaimArgs",
    "DnsArgs",
    "ExposureArgs",
    "Governance",
    "GovernanceArgs",
    "GpuRuntime",
    "GpuRuntimeArgs",
    "HttpRouteArgs",
    "ImageTrust",
    "ImageTrustArgs",
    "IngressArgs",
    "IssuerArgs",
    "LocalCopyArgs",
    "ModelServer",
    "ModelServerArgs",
    "ModelStore",
    "ModelStoreArgs",
    "Monitoring",
    "MonitoringArgs",
    "Network",
    "NetworkArgs",
    "ObjectivesArgs",
    "OllamaFleet",
    "OllamaFleetArgs",
    "OriginArgs",
    "PairArgs",
    "PodsArgs",
    "PoolArgs",
    "PriorityClassesArgs",
    "Prometheus",
    "PrometheusArgs",
    "ResourceArgs",
    "RuntimeImages",
    "RuntimeImagesArgs",
    "ScaleArgs",
    "SharingArgs",
    "Storage",
    "StorageArgs",
    "TierArgs",
    "TlsArgs",
    "TolerationArgs",
    "VllmArgs",
    "WorkloadArgs",
]
