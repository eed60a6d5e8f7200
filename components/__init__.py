"""The deployable parts of a model fleet, as Pulumi ComponentResources. They know no stack and read no configuration."""

from components.activator import Activator, ActivatorArgs
from components.api_server import ApiServer, ApiServerArgs
from components.cache import CacheServer, CacheServerArgs
from components.governance import Governance, GovernanceArgs
from components.gpu import ClaimArgs, GpuRuntime, GpuRuntimeArgs, SharingArgs
from components.image_trust import ImageTrust, ImageTrustArgs
from components.images import RuntimeImages, RuntimeImagesArgs
from components.model_server import ModelServer, ModelServerArgs
from components.models import ModelStore, ModelStoreArgs
from components.monitoring import Monitoring, MonitoringArgs
from components.network import Network, NetworkArgs, OriginArgs
from components.ollama import OllamaFleet, OllamaFleetArgs
from components.ollama_agent import AgentArgs
from components.pods import ResourceArgs
from components.storage import Storage, StorageArgs, TierArgs

__all__ = [
    "Activator",
    "ActivatorArgs",
    "AgentArgs",
    "ApiServer",
    "ApiServerArgs",
    "CacheServer",
    "CacheServerArgs",
    "ClaimArgs",
    "Governance",
    "GovernanceArgs",
    "GpuRuntime",
    "GpuRuntimeArgs",
    "ImageTrust",
    "ImageTrustArgs",
    "ModelServer",
    "ModelServerArgs",
    "ModelStore",
    "ModelStoreArgs",
    "Monitoring",
    "MonitoringArgs",
    "Network",
    "NetworkArgs",
    "OllamaFleet",
    "OllamaFleetArgs",
    "OriginArgs",
    "ResourceArgs",
    "RuntimeImages",
    "RuntimeImagesArgs",
    "SharingArgs",
    "Storage",
    "StorageArgs",
    "TierArgs",
]
