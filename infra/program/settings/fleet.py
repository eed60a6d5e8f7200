"""The section `fleet`: the Ollama servers."""

from pydantic import Field

from infra.program.settings.models import KEEP_ALIVE
from infra.program.settings.section import Bytes, Cidr, Resources, Section


class ScaleToZeroSettings(Section):
    idle_minutes: int = Field(default=15, ge=1, le=1440)
    """A server goes after so long, in which fewer would have done and it had no request."""
    keep_copies: bool = True
    """Keep the copies of the models of servers that went: the next start copies nothing, and needs the same nodes. False where nodes go
    with the servers: they come up on any node then, and copy the models from the shared tier."""
    kubernetes_cidrs: list[Cidr] = Field(min_length=1)
    """Addresses of the cluster's API server, where the activator scales the servers: kubectl get endpoints kubernetes."""


class ScaleSettings(ScaleToZeroSettings):
    min: int = Field(default=1, ge=0, le=500)
    """Servers at least. 0: when they are idle all go, and the next request waits for a start."""


class FleetSettings(Section):
    replicas: int = Field(default=1, ge=1, le=500)
    """Ollama servers; with `scale` or an autoscaler, the most that there may be."""
    autoscaled: bool = False
    """An autoscaler of yours sets the number of servers: the stack leaves it alone. docs/gateway.md has the metric."""
    scale: ScaleSettings | None = None
    """An activator of ours scales between `min` and `replicas` by what conversations and requests need."""
    scale_to_zero: ScaleToZeroSettings | None = None
    """The older name of `scale` with `min: 0`."""
    gpus_per_pod: int = Field(default=0, ge=0, le=8)
    """GPUs of one server; at most one where GPUs are shared or partitioned."""
    context_length: int = Field(default=32768, ge=2048, le=1_048_576)
    """Tokens per request that any model may have; Ollama's own default depends on the GPU, so it is always set."""
    min_context: int = Field(default=16384, ge=512, le=1_048_576)
    """Tokens that the running servers must hold for every model that chats, or the deployment fails. OpenHands refuses less than 16384."""
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
        return self.scaling is None or self.scaling.keep_copies

    @property
    def fixed_replicas(self) -> int | None:
        """None where an autoscaler, yours or ours, owns the number."""
        return None if self.autoscaled or self.scaling else self.replicas

    @property
    def scaling(self) -> ScaleSettings | None:
        """How our activator scales, under either name; None without one."""
        old = self.scale_to_zero
        return self.scale if old is None else ScaleSettings.model_construct(min=0, **dict(old))
