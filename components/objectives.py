"""What the fleet promises its clients, and the rules that tell when the promise is being broken, by how fast its budget of faults goes."""

from dataclasses import dataclass

RUNBOOK = "docs/alerts.md"
"""The page with a section for each alert, under its name."""
_FAST, _SLOW = (("1h", "5m", 14.4), ("6h", "30m", 6.0)), (("1d", "2h", 3.0), ("3d", "6h", 1.0))
"""Long window, short window, and how many times too fast the budget of 30 days goes. Two windows: the alert ends soon after its cause.
Source: Google's Site Reliability Workbook, chapter 5, "Multiwindow, Multi-Burn-Rate Alerts", table 5-8."""
_WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
_FEWEST = 20
"""Requests of the long window. Of fewer, one fault says nothing: the same chapter, "Low-Traffic Services"."""
_ASKED = 'api_server_requests_total{model!="unknown",status=~"[235]..|429"}'
"""What the fleet is held to: neither what clients asked wrongly (4xx), nor what they left (499). A 429 with a model is a full fleet:
what exceeds the limit of a key is not among these."""
_NOT_ANSWERED = 'api_server_requests_total{model!="unknown",status=~"5..|429"}'
_FIRST_TOKENS = "api_server_time_to_first_token_seconds"


@dataclass(frozen=True, kw_only=True)
class ObjectivesArgs:
    """What the fleet promises, by model, over 30 days."""

    answered: float = 0.99
    """Part of the turns that get an answer: neither 5xx, nor 429 because all servers are busy."""
    first_token: float = 0.95
    """Part of the streams whose first token comes in time."""
    first_token_seconds: int = 30
    """That time. It is a bound of the histogram `api_server_time_to_first_token_seconds`."""


def records(objectives: ObjectivesArgs) -> list[dict[str, str]]:
    """The part of the turns, by model, that broke each promise, for every window that an alert looks at."""
    # Whole numbers have had a `.0` behind them since Prometheus 3.
    in_time = f'{_FIRST_TOKENS}_bucket{{le=~"{objectives.first_token_seconds}([.]0)?"}}'
    parts = {
        "turns_not_answered": f"{_by_model(_NOT_ANSWERED)} / {_by_model(_ASKED)}",
        "first_tokens_late": f"1 - {_by_model(in_time)} / {_by_model(f'{_FIRST_TOKENS}_count')}",
    }
    return [
        {"record": _record(name, window), "expr": expression.replace("WINDOW", window)}
        for name, expression in parts.items()
        for window in _WINDOWS
    ]


def burn_alerts(objectives: ObjectivesArgs) -> list[tuple[str, str, str, str, str, str]]:
    """Two alerts for each promise, in the form of those in alerts.py: `Fast` is for now, `Slowly` for the next working day."""
    budgets = (
        ("TurnsBudget", "turns_not_answered", 1 - objectives.answered, _ASKED, "turns of {{ $labels.model }} got no answer"),
        (
            "FirstTokenBudget",
            "first_tokens_late",
            1 - objectives.first_token,
            f"{_FIRST_TOKENS}_count",
            f"streams of {{{{ $labels.model }}}} waited over {objectives.first_token_seconds} s for their first token",
        ),
    )
    speeds = (
        ("BurnsFast", "critical", _FAST, "2m", "the budget of a month is gone within days"),
        ("BurnsSlowly", "warning", _SLOW, "15m", "the budget of a month does not last"),
    )
    return [
        (
            name + speed,
            severity,
            " or ".join(_pair(record, budget, asked, *pair) for pair in pairs),
            duration,
            f"{{{{ $value | humanizePercentage }}}} of the {what}: {end}.",
            "The panels of the dashboard 'Fleet and agents' say since when, and which server; then the log of that server.",
        )
        for name, record, budget, asked, what in budgets
        for speed, severity, pairs, duration, end in speeds
    ]


def _pair(record: str, budget: float, asked: str, long: str, short: str, burn: float) -> str:
    limit = f"{burn * budget:.4g}"
    enough = f"sum by (model) (increase({asked}[{long}])) >= {_FEWEST}"
    return f"({_record(record, long)} > {limit} and {_record(record, short)} > {limit} and {enough})"


def _record(name: str, window: str) -> str:
    return f"modelfleet:{name}:ratio_rate{window}"


def _by_model(series: str) -> str:
    return f"sum by (model) (rate({series}[WINDOW]))"
