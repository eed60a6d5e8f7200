"""Prometheus metrics of one Ollama server, made from the agent's last look."""

import os
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ollama_agent import connections
from ollama_agent.replica import Replica


class ReplicaCollector(Collector):
    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    def collect(self) -> Iterator[Metric]:
        replica = self._replica
        yield GaugeMetricFamily("ollama_up", "Whether the server answers", value=float(replica.answers))
        yield GaugeMetricFamily("ollama_ready", "Whether the replica takes requests", value=float(replica.unready_reason() is None))
        yield GaugeMetricFamily("ollama_draining", "Whether it waits for its last requests", value=float(replica.draining))
        yield GaugeMetricFamily(
            "ollama_connections", "Connections from outside the pod", value=connections.in_flight(replica.settings.ollama_port)
        )
        yield GaugeMetricFamily("ollama_models_available", "Models in the server's store", value=len(replica.available))
        yield GaugeMetricFamily("ollama_catalog_models", "Models that the replica should hold", value=len(replica.catalog.models))
        yield from self._models()
        yield from _store(replica.settings.store)

    def _models(self) -> Iterator[Metric]:
        replica, labels = self._replica, ["model"]
        proven = GaugeMetricFamily("ollama_model_proven", "Whether a model of the catalog was loaded with its context", labels=labels)
        for model in replica.catalog.models:
            proven.add_metric([model.name], float(model.name in replica.proofs))
        problems = GaugeMetricFamily(
            "ollama_model_problem", "Whether a model cannot answer here, or only an older version of it", labels=["model", "kind"]
        )
        for name, problem in replica.problems.all().items():
            problems.add_metric([name, problem.kind], 1)
        resident = GaugeMetricFamily("ollama_model_resident_bytes", "Memory of a loaded model", labels=labels)
        vram = GaugeMetricFamily("ollama_model_resident_vram_bytes", "Its part in GPU memory", labels=labels)
        context = GaugeMetricFamily("ollama_model_context_length", "Tokens that it was loaded for", labels=labels)
        for name, found in replica.memory.loaded.items():
            for family, value in ((resident, found.bytes), (vram, found.vram_bytes), (context, found.context_length)):
                family.add_metric([name], value)
        loads = GaugeMetricFamily("ollama_model_load_seconds", "What the model's last load by the agent took", labels=labels)
        for name, seconds in replica.load_s.items():
            loads.add_metric([name], seconds)
        evictions = CounterMetricFamily("ollama_model_evictions", "Unloads before the keep-alive ended", labels=labels)
        for name in replica.proofs.keys() | replica.memory.evictions.keys():
            evictions.add_metric([name], replica.memory.evictions[name])
        yield from (proven, problems, resident, vram, context, loads, evictions)


def _store(path: Path) -> Iterator[Metric]:
    try:
        blobs = sum(entry.stat().st_size for entry in os.scandir(path / "blobs"))
        volume = os.statvfs(path)
    except OSError:
        return
    yield GaugeMetricFamily("ollama_store_bytes", "Blobs in the replica's own store", value=blobs)
    yield GaugeMetricFamily("ollama_store_free_bytes", "Room left on its volume", value=volume.f_bavail * volume.f_frsize)
