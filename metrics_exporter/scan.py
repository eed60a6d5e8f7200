"""What the last scan of the images that run has found. `make scan` keeps it in a ConfigMap, and the kubelet brings that as a file."""

import logging
from pathlib import Path
from typing import Literal

from prometheus_client.core import GaugeMetricFamily, Metric
from pydantic import BaseModel, ConfigDict, Field, ValidationError

log = logging.getLogger("metrics_exporter")
_Severity = Literal["unknown", "negligible", "low", "medium", "high", "critical"]
_LARGEST = 64 * 1024
"""Bytes of the file; what a scan writes is a hundredth of that."""


class Result(BaseModel):
    """Of one scan of all images that ran."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    finished: float = Field(ge=0, le=1e11)
    """Unix time."""
    images: int = Field(ge=0)
    unread: int = Field(ge=0)
    """Images that could not be looked at."""
    vulnerabilities: dict[_Severity, int]


class Scan:
    """Reads the file at each look, since a scan may come at any time. Without one there is no metric."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._said = ""

    async def read(self) -> list[Metric]:
        """Nothing where there was no scan, and for a file that is no result, which is said once."""
        try:
            with self._path.open("rb") as file:
                result = Result.model_validate_json(file.read(_LARGEST))
        except FileNotFoundError:
            return []
        except (OSError, ValidationError) as error:
            told = type(error).__name__
            if told != self._said:
                log.warning("%s: got no result of a scan, want one; run make scan again (%s)", self._path, told)
            self._said = told
            return []
        self._said = ""
        found = GaugeMetricFamily(
            "image_scan_vulnerabilities", "Vulnerabilities in the images that ran at the last scan", labels=["severity"]
        )
        for severity, count in sorted(result.vulnerabilities.items()):
            found.add_metric([severity], count)
        return [
            GaugeMetricFamily("image_scan_timestamp_seconds", "When the last scan of the images that ran ended", value=result.finished),
            GaugeMetricFamily("image_scan_images", "Images of the last scan", value=result.images),
            GaugeMetricFamily("image_scan_unread_images", "Those that could not be looked at", value=result.unread),
            found,
        ]
