"""GPU metrics through NVML. The only module that imports pynvml (the package nvidia-ml-py).

What a driver or device does not offer is absent from the answer: a zero would be a lie, an old value a worse one. A GPU that is lost is
told as lost, and hides no other.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pynvml
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

log = logging.getLogger("metrics_exporter")
_LABELS = ["node", "gpu", "uuid", "model"]
_MIG_LABELS = [*_LABELS, "instance"]
_MILLI = 1e-3
_ABSENT = (pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, pynvml.NVML_ERROR_NO_PERMISSION)


def _memory(device: Any) -> Any:
    """As nvidia-smi counts it. The first version of the question counts what is reserved as used: 615 MiB of an empty H200."""
    try:
        return pynvml.nvmlDeviceGetMemoryInfo(device, version=pynvml.nvmlMemory_v2)
    except pynvml.NVMLError as error:
        if error.value not in (*_ABSENT, pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH):  # pyright: ignore[reportAttributeAccessIssue]
            raise
        return pynvml.nvmlDeviceGetMemoryInfo(device)  # Drivers before 510.


_Reading = tuple[str, str, type[GaugeMetricFamily] | type[CounterMetricFamily], Callable[[Any], Any]]
_READINGS: tuple[_Reading, ...] = (
    (
        "nvml_gpu_utilization_ratio",
        "Share of the last sample period with a kernel running, 0 to 1",
        GaugeMetricFamily,
        lambda gpu: int(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu) / 100,
    ),
    ("nvml_memory_used_bytes", "Memory in use, without what driver and firmware keep", GaugeMetricFamily, lambda gpu: _memory(gpu).used),
    ("nvml_memory_total_bytes", "Memory of the device", GaugeMetricFamily, lambda gpu: _memory(gpu).total),
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
_MIG_READINGS: tuple[_Reading, ...] = (
    ("nvml_mig_memory_used_bytes", "Memory in use", GaugeMetricFamily, lambda mig: _memory(mig).used),
    ("nvml_mig_memory_total_bytes", "Memory of the instance", GaugeMetricFamily, lambda mig: _memory(mig).total),
)
"""Of a MIG instance NVML tells no more; DCGM measures the rest."""
_HELD_BACK = {
    "power": pynvml.nvmlClocksEventReasonSwPowerCap,
    "heat": pynvml.nvmlClocksEventReasonSwThermalSlowdown | pynvml.nvmlClocksEventReasonHwThermalSlowdown,
    "hardware": pynvml.nvmlClocksEventReasonHwSlowdown | pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown,
}
"""Why clocks are lower than they could be, to the bits that say so. `power` is normal under full load."""

_Samples = list[tuple[str, list[str], float]]
"""Metric, labels, value."""


class Nvml:
    """Reads every GPU of the node. Without the library it says so once, and reports `nvml_up 0`."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._initialized = False
        self._said = False
        self._lost: dict[int, str] = {}
        self._names: dict[int, list[str]] = {}
        """Index to labels: a GPU that is lost does not even tell its name."""

    def collect(self) -> list[Metric]:
        """Ends the process when a driver that was there has gone: its library is mapped, and no later one can be."""
        alive = self._initialize()
        samples: _Samples = [("nvml_up", [self._node], float(alive))]
        if alive:
            try:
                count = pynvml.nvmlDeviceGetCount()
            except pynvml.NVMLError as error:
                log.critical("error: NVML: got %s, want an answer; ending, to load the driver's library anew", error)
                sys.stderr.flush()
                os._exit(1)
            for index in range(count):
                samples += self._gpu(index)
        return list(_families(samples))

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
        return True

    def _gpu(self, index: int) -> _Samples:
        """All of one GPU, or that it is lost."""
        labels = self._names.get(index, [self._node, str(index), "", ""])
        try:
            gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
            labels = self._names[index] = [self._node, str(index), *_identity(gpu)]
            samples = [*_read(_READINGS, gpu, labels), *_held_back(gpu, labels), *_instances(gpu, labels)]
        except pynvml.NVMLError as error:
            if self._lost.get(index) != str(error):
                log.warning("NVML: GPU %d: got %s, want an answer; reporting nvml_gpu_up 0", index, error)
            self._lost[index] = str(error)
            return [("nvml_gpu_up", labels, 0.0)]
        self._lost.pop(index, None)
        return [("nvml_gpu_up", labels, 1.0), *samples]


def _families(samples: _Samples) -> Iterator[Metric]:
    """One family of each metric that has samples."""
    families: dict[str, Any] = {
        "nvml_up": GaugeMetricFamily("nvml_up", "Whether NVML answers", labels=["node"]),
        "nvml_gpu_up": GaugeMetricFamily("nvml_gpu_up", "Whether the GPU answers", labels=_LABELS),
        **{name: family(name, text, labels=_LABELS) for name, text, family, _ in _READINGS},
        "nvml_clocks_held_back": GaugeMetricFamily("nvml_clocks_held_back", "Whether clocks are held back", labels=[*_LABELS, "reason"]),
        **{name: family(name, text, labels=_MIG_LABELS) for name, text, family, _ in _MIG_READINGS},
    }
    for name, labels, value in samples:
        families[name].add_metric(labels, value)
    return (family for family in families.values() if family.samples)


def _identity(device: Any) -> list[str]:
    return [str(_optional(read, device) or "") for read in (pynvml.nvmlDeviceGetUUID, pynvml.nvmlDeviceGetName)]


def _read(readings: tuple[_Reading, ...], device: Any, labels: list[str]) -> _Samples:
    values = [(name, _optional(read, device)) for name, _, _, read in readings]
    return [(name, labels, float(value)) for name, value in values if value is not None]


def _held_back(gpu: Any, labels: list[str]) -> Iterator[tuple[str, list[str], float]]:
    bits = _optional(pynvml.nvmlDeviceGetCurrentClocksEventReasons, gpu)
    if bits is None:  # Drivers before 535 have the other name alone.
        bits = _optional(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, gpu)
    if bits is not None:
        for reason, mask in _HELD_BACK.items():
            yield "nvml_clocks_held_back", [*labels, reason], float(bool(bits & mask))


def _instances(gpu: Any, labels: list[str]) -> Iterator[tuple[str, list[str], float]]:
    """The MIG instances of a GPU that is cut into them; `uuid` and `model` are theirs."""
    mode = _optional(pynvml.nvmlDeviceGetMigMode, gpu)
    if mode is None or mode[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
        return
    for slot in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
        try:
            instance = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, slot)
        except pynvml.NVMLError as error:
            if error.value == pynvml.NVML_ERROR_NOT_FOUND:  # pyright: ignore[reportAttributeAccessIssue] (set by the library's __new__)
                continue
            raise
        yield from _read(_MIG_READINGS, instance, [*labels[:2], *_identity(instance), str(slot)])


def _optional(read: Callable[[Any], Any], device: Any) -> Any:
    """The reading, or None where this driver or device has none."""
    try:
        return read(device)
    except pynvml.NVMLError as error:
        if error.value in _ABSENT:  # pyright: ignore[reportAttributeAccessIssue] (set by the library's __new__)
            return None
        raise
