"""GPU metrics through NVML. The only module that imports pynvml (the package nvidia-ml-py).

What a driver or device does not offer is absent from the answer: a zero would be a lie, an old value a worse one.
"""

import logging
from collections.abc import Callable
from typing import Any

import pynvml
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

log = logging.getLogger("metrics_exporter")
_LABELS = ["node", "gpu", "uuid", "model"]
_MILLI = 1e-3
_ABSENT = (pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, pynvml.NVML_ERROR_NO_PERMISSION)

_Reading = tuple[str, str, type[GaugeMetricFamily] | type[CounterMetricFamily], Callable[[Any], Any]]
_READINGS: tuple[_Reading, ...] = (
    (
        "nvml_gpu_utilization_ratio",
        "Share of the last sample period with a kernel running, 0 to 1",
        GaugeMetricFamily,
        lambda gpu: int(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu) / 100,
    ),
    ("nvml_memory_used_bytes", "Memory in use", GaugeMetricFamily, lambda gpu: pynvml.nvmlDeviceGetMemoryInfo(gpu).used),
    ("nvml_memory_total_bytes", "Memory of the device", GaugeMetricFamily, lambda gpu: pynvml.nvmlDeviceGetMemoryInfo(gpu).total),
    (
        "nvml_temperature_celsius",
        "Temperature of the chip",
        GaugeMetricFamily,
        lambda gpu: pynvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU),
    ),
    ("nvml_power_watts", "Power drawn now", GaugeMetricFamily, lambda gpu: pynvml.nvmlDeviceGetPowerUsage(gpu) * _MILLI),
    (
        "nvml_energy_joules",
        "Energy since the driver was loaded",
        CounterMetricFamily,
        lambda gpu: pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) * _MILLI,
    ),
    (
        "nvml_ecc_uncorrected_errors",
        "Uncorrected memory errors since the driver was loaded",
        CounterMetricFamily,
        lambda gpu: pynvml.nvmlDeviceGetTotalEccErrors(gpu, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC),
    ),
)


class Nvml:
    """Reads every GPU of the node. Without the library it says so once, and reports `nvml_up 0`."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._initialized = False
        self._said = False

    def _initialize(self) -> bool:
        if self._initialized:
            return True
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            if not self._said:
                self._said = True
                log.warning("NVML: got %s, want the NVIDIA driver's library; reporting nvml_up 0 and trying again at every scrape", error)
            return False
        self._initialized = True
        self._said = False
        log.info("NVML: %d GPUs", pynvml.nvmlDeviceGetCount())
        return True

    def collect(self) -> list[Metric]:
        up = GaugeMetricFamily("nvml_up", "Whether NVML answers", labels=["node"])
        families: list[Metric] = []
        try:
            alive = self._initialize()
            if alive:
                families = self._gpus()
        except pynvml.NVMLError as error:
            # The driver went away, for an upgrade for example: start over at the next scrape.
            log.warning("NVML: got %s, want an answer; starting over at the next scrape", error)
            alive, self._initialized = False, False
        up.add_metric([self._node], float(alive))
        return [up, *families]

    def _gpus(self) -> list[Metric]:
        families: dict[str, Any] = {name: family(name, text, labels=_LABELS) for name, text, family, _ in _READINGS}
        for index in range(pynvml.nvmlDeviceGetCount()):
            gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
            labels = [
                self._node,
                str(index),
                *(_optional(read, gpu) or "" for read in (pynvml.nvmlDeviceGetUUID, pynvml.nvmlDeviceGetName)),
            ]
            for name, _, _, read in _READINGS:
                value = _optional(read, gpu)
                if value is not None:
                    families[name].add_metric(labels, float(value))
        return [family for family in families.values() if family.samples]


def _optional(read: Callable[[Any], Any], gpu: Any) -> Any:
    """The reading, or None where this driver or device has none."""
    try:
        return read(gpu)
    except pynvml.NVMLError as error:
        if error.value in _ABSENT:  # pyright: ignore[reportAttributeAccessIssue] (set by the library's __new__)
            return None
        raise
