"""What every workload has in the settings: what it asks for, where it runs, and as whom."""

import components as c
from components.contract import ARCHITECTURE, USER_ID
from infra.program.settings import Settings
from infra.program.settings.gpu import GpuSettings
from infra.program.settings.section import Resources
from infra.program.settings.workloads import WorkloadName, WorkloadSettings

NO_GPUS = GpuSettings()


def resources(wanted: Resources, gpus: int = 0, gpu: GpuSettings = NO_GPUS) -> c.ResourceArgs:
    """What a container of a workload asks for."""
    return c.ResourceArgs(cpu=wanted.cpu, memory=wanted.memory, gpus=gpus, gpu_resource=gpu.resource, claims_gpus=gpu.allocation == "dra")


def workload(settings: Settings, name: WorkloadName, own: WorkloadSettings | None = None) -> c.WorkloadArgs:
    """What the cluster asks of the pods of a workload, or of those that have their `own` placement.

    An image on a node of another architecture ends with "exec format error", and Kubernetes does not look at the image beforehand.
    """
    wanted = own or settings.workloads.get(name, WorkloadSettings())
    fits = {ARCHITECTURE: settings.images.architecture} if settings.images.architecture else {}
    user_id = USER_ID if settings.cluster.user_ids == "fixed" else None
    return c.WorkloadArgs(
        node_selector={**fits, **wanted.node_selector},
        tolerations=[
            c.TolerationArgs(key=each.key, operator=each.operator, value=each.value, effect=each.effect) for each in wanted.tolerations
        ],
        zones=None if wanted.zones == "any" else wanted.zones,
        account_annotations=wanted.account_annotations,
        user_id=user_id,
        log_level=settings.monitoring.log_level,
    )
