"""One Grafana dashboard: the fleet as its clients meet it, by metrics of docs/metrics.md."""

import json
from typing import Any

_WINDOW = "[$__rate_interval]"


def _rate(metric: str, by: str = "model") -> str:
    return f"sum by ({by}) (rate({metric}{_WINDOW}))"


def _quantile(part: float, histogram: str) -> str:
    return f"histogram_quantile({part}, {_rate(f'{histogram}_bucket', 'model, le')})"


_HITS, _MISSES = f"rate(cache_keyspace_hits_total{_WINDOW})", f"rate(cache_keyspace_misses_total{_WINDOW})"
_PANELS = (
    # title, unit, expression, legend
    ("Requests by status", "reqps", _rate("api_server_requests_total", "model, status"), "{{model}} {{status}}"),
    ("Requests in work", "short", "sum by (upstream, address) (api_server_in_flight_requests)", "{{address}}"),
    ("Requests that wait for a server", "short", "sum by (model) (api_server_waiting_requests)", "{{model}}"),
    ("Wait of held requests, 95 %", "s", _quantile(0.95, "api_server_held_seconds"), "{{model}}"),
    ("Time to first token, 95 %", "s", _quantile(0.95, "api_server_time_to_first_token_seconds"), "{{model}}"),
    ("Tokens of a stream by second, median", "short", _quantile(0.5, "api_server_tokens_per_second"), "{{model}}"),
    ("Tokens of prompts by second", "short", _rate("api_server_prompt_tokens_total"), "{{model}}"),
    ("Tokens of answers by second", "short", _rate("api_server_completion_tokens_total"), "{{model}}"),
    ("Prompts that a server had to count", "reqps", _rate("api_server_counted_prompts_total"), "{{model}}"),
    ("Requests that do not fit the context", "reqps", _rate("api_server_context_refusals_total"), "{{model}}"),
    ("Servers that take connections", "short", "sum by (upstream) (api_server_upstream_up)", "{{upstream}}"),
    ("Failed attempts", "reqps", _rate("api_server_upstream_errors_total", "upstream, reason"), "{{upstream}} {{reason}}"),
    ("Share of hits in the cache", "percentunit", f"{_HITS} / ({_HITS} + {_MISSES})", "hits"),
    ("GPU utilisation", "percentunit", "nvml_gpu_utilization_ratio", "{{node}} {{gpu}}"),
    ("GPU memory", "percentunit", "nvml_memory_used_bytes / nvml_memory_total_bytes", "{{node}} {{gpu}}"),
)
_WIDTH, _HEIGHT = 12, 8
"""Of a panel, in the 24 columns of Grafana's grid."""


def document() -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    panels = [
        {
            "id": index + 1,
            "title": title,
            "type": "timeseries",
            "datasource": source,
            "gridPos": {"x": _WIDTH * (index % 2), "y": _HEIGHT * (index // 2), "w": _WIDTH, "h": _HEIGHT},
            "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
            "targets": [{"refId": "A", "datasource": source, "expr": expression, "legendFormat": legend}],
        }
        for index, (title, unit, expression, legend) in enumerate(_PANELS)
    ]
    return {
        "uid": "modelfleet",
        "title": "Model fleet",
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}]},
        "panels": panels,
    }


def text() -> str:
    return json.dumps(document(), indent=1, sort_keys=True) + "\n"
