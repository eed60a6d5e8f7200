"""What a dashboard is made of: rows of panels, each with its expressions, and the forms that most expressions have."""

from collections.abc import Mapping
from dataclasses import dataclass

WINDOW = "[$__rate_interval]"
"""The one that Grafana finds right for the step of a panel."""


@dataclass(frozen=True)
class Panel:
    title: str
    unit: str
    """One of Grafana's own names for units."""
    lines: Mapping[str, str]
    """Expression to the name of its lines."""
    about: str = ""
    """What a reader must know to read it."""


@dataclass(frozen=True)
class Board:
    uid: str
    title: str
    rows: Mapping[str, tuple[Panel, ...]]
    of_a_namespace: bool = False
    """Whether a reader chooses a namespace."""


def rate(metric: str, by: str = "model") -> str:
    return f"sum by ({by}) (rate({metric}{WINDOW}))"


def quantiles(histogram: str, by: str = "model") -> dict[str, str]:
    name = f"{{{{{by}}}}} " if by else ""
    grouped = f"{by}, le" if by else "le"
    return {
        f"histogram_quantile({part}, {rate(f'{histogram}_bucket', grouped)})": f"{name}{text}"
        for part, text in ((0.5, "median"), (0.95, "95 %"))
    }


def share(part: str, whole: str) -> str:
    return f"{part} / {whole}"
