"""The section `governance`: what the namespace may use, and whether it must be fit for production."""

from pydantic import Field

from infra.program.settings.section import Bytes, Cores, Section


class GovernanceSettings(Section):
    production: bool = False
    """Refuse what a production fleet must not have: single replicas, secrets in plain text, models that go with the stack, an API server
    open to the internet, GPU shares without isolation. Images are immutable in every stack: by digest, or built."""
    gpu_quota: int = Field(default=0, ge=0, le=1024)
    """GPUs, shares or MIG partitions that the namespace may request together."""
    cpu: Cores = "32"
    """Sum of CPU requests in the namespace."""
    memory: Bytes = "128Gi"
    """Sum of memory requests in the namespace."""
    ephemeral_storage: Bytes = "64Gi"
    """Sum of requests for the nodes' own disk: logs and scratch."""
    pods: int = Field(default=100, ge=10, le=1000)
    """Pods of the namespace."""
    claims: int = Field(default=20, ge=2, le=1000)
    """Persistent volume claims of the namespace, also of replicas that are gone."""
    storage: Bytes = "2Ti"
    """Sum of what the claims request."""
