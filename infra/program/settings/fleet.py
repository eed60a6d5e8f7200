"""The section `fleet`: the Ollama servers."""

from pydantic import Field

from infra.program.settings.models import KEEP_ALIVE
from infra.program.settings.section import Bytes, Cidr, Resources, Section


class ScaleToZeroSettings(Section):
    idle_minutes: int = Field(default=15, ge=1, le=1440)
    """Without a request for so long, the fleet goes to zero servers; the next request waits for their start."""
    keep_copies: bool = True
    """Keep the replicas' copies of the models at zero: the next start copies nothing, and needs the same nodes. False where nodes go with
    the fleet: it comes up on any node then, and copies the models from the shared tier."""
    kubernetes_cidrs: list[Cidr] = Field(min_length=1)
    """Addresses of the cluster's API server, where the activator scales the fleet: kubectl get endpoints kubernetes."""


class FleetSettings(Section):
    replicas: int = Field(default=1, ge=1, le=64)
    """Ollama servers; with an autoscaler, the most that it may make."""
    autoscaled: bool = False
    """An autoscaler of yours sets the number of servers: the stack leaves it alone. docs/gateway.md has the metric."""
    scale_to_zero: ScaleToZeroSettings | None = None
    """An activator of ours scales between zero and `replicas`; requests wait at the API server meanwhile."""
    gpus_per_pod: int = Field(default=0, ge=0, le=8)
    """GPUs of one server; at most one where GPUs are shared or partitioned."""
    context_length: int = Field(default=32768, ge=2048, le=1_048_576)
    """Tokens per request that any model may have; Ollama's own default depends on the GPU, so it is always set."""
    min_context: int = Field(default=16384, ge=512, le=1_048_576)
    """Tokens that the running servers must hold for every model, or the deployment fails. OpenHands refuses less than 16384."""
    num_parallel: int = Field(default=1, ge=1, le=64)
    """Requests that one model serves at once; memory for context grows with it."""
    keep_alive: str = Field(default="-1", pattern=KEEP_ALIVE)
    """How long an idle model stays loaded; -1 is for ever."""
    max_queue: int = Field(default=16, ge=1, le=512)
    """Requests that may wait for a model to load."""
    drain_seconds: int = Field(default=600, ge=30, le=86400)
    """How long a replica that has to stop waits for its last answers: the longest answer that no rollout cuts."""
    prompt_cache: Bytes = "8Gi"
    """Host memory that each loaded model may keep old prompts in (llama.cpp's own default)."""
    resources: Resources

    @property
    def keeps_copies(self) -> bool:
        """Whether the volume of a replica that was scaled away stays."""
        return self.scale_to_zero is None or self.scale_to_zero.keep_copies

    @property
    def fixed_replicas(self) -> int | None:
        """None where an autoscaler, yours or ours, owns the number."""
        return None if self.autoscaled or self.scale_to_zero else self.replicas
