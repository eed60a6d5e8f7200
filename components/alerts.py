"""Alert rules: what a person must know, by metrics of docs/metrics.md. docs/alerts.md has a section for each;
tests/service/test_alerts.py fires each of them."""

from typing import Any

from .objectives import RUNBOOK, ObjectivesArgs, burn_alerts, records

_BY_MODEL = "sum by (model) (rate(api_server_requests_total{%s}[5m]))"
_SHARE = f"{_BY_MODEL} / {_BY_MODEL} > %s"

_RULES = (
    # name, severity, expression, for, summary, what to do
    (
        "ApiServerNotSeen",
        "critical",
        "absent(api_server_waiting_requests)",
        "5m",
        "No API server is scraped, so clients probably reach none.",
        "Look at the pods of api-server, and whether Prometheus may scrape their port 9464.",
    ),
    (
        "ModelServerUnreachable",
        "warning",
        "api_server_upstream_up == 0",
        "5m",
        "{{ $labels.address }} of {{ $labels.upstream }} takes no connections.",
        "Look at the pod with that address; the others take its requests meanwhile.",
    ),
    (
        "RequestsWaitForServers",
        "critical",
        # At a full fleet somebody always waits, and is answered in the end: that is for FleetIsFull.
        "max by (model) (api_server_waiting_requests) > 0 unless on (model) " + _BY_MODEL % 'status="200"' + " > 0",
        "10m",
        "Requests for {{ $labels.model }} wait, and none is answered.",
        "No server has the model, or it hangs: look at the pods of ollama, or of the model server, their events, and the activator's log.",
    ),
    (
        "RequestsFail",
        "critical",
        _SHARE % ('status=~"5.."', "", "0.05"),
        "10m",
        "{{ $value | humanizePercentage }} of the requests for {{ $labels.model }} fail.",
        "api_server_upstream_errors_total has the reasons by server; then the log of that server.",
    ),
    (
        "FleetIsFull",
        "warning",
        _SHARE % ('status="429"', "", "0.1"),
        "10m",
        "{{ $value | humanizePercentage }} of the requests for {{ $labels.model }} are refused, because all servers are busy.",
        "Raise fleet.replicas, or fleet.numParallel where memory allows it.",
    ),
    (
        "PromptsDoNotFit",
        "info",
        _SHARE.replace("api_server_requests_total{%s}", "api_server_context_refusals_total", 1) % ("", "0.05"),
        "30m",
        "{{ $value | humanizePercentage }} of the requests for {{ $labels.model }} are longer than its context.",
        "Raise fleet.contextLength, or have clients shorten their conversations.",
    ),
    (
        "CertificateEndsSoon",
        "critical",
        "(api_server_certificate_expiry_timestamp_seconds - time())"
        " / (api_server_certificate_expiry_timestamp_seconds - api_server_certificate_start_timestamp_seconds) < 0.1",
        "10m",
        "The API server's certificate has {{ $value | humanizePercentage }} of its time left.",
        "Renew its Secret: look at cert-manager's Certificate, or run make up where the authority is the stack's own.",
    ),
    (
        "CertificateIsNotTaken",
        "warning",
        "increase(api_server_certificate_reload_failures_total[10m]) > 0",
        "10m",
        "An API server serves an old certificate, because the new one is not usable.",
        "Its log says what is wrong with the Secret.",
    ),
    (
        "ModelServerEngineDown",
        "warning",
        "model_server_engine_up == 0",
        "5m",
        "The model server at {{ $labels.instance }} is up, but its engine is not.",
        "Look at the log of the pod with that address.",
    ),
    (
        "KeeperFails",
        "warning",
        "max by (instance) (model_server_tier_keeper_failing) > 0",
        "10m",
        "The keeper of the disk for old prompts of the model server at {{ $labels.instance }} cannot read or write it.",
        "Look at the log of the container cache-keeper there, and at its volume. Engines write nothing more; prompts are read again.",
    ),
    (
        "CacheDown",
        "warning",
        "cache_up == 0",
        "5m",
        "The cache server does not answer.",
        "Answers are computed anew each time until it does.",
    ),
    (
        "ImagesAreVulnerable",
        "warning",
        'sum without (severity) (image_scan_vulnerabilities{severity="critical"}) > 0',
        "5m",
        "The images that run have {{ $value }} critical vulnerabilities.",
        "make scan says which images; rebuild these on newer bases, sign them and deploy them.",
    ),
    (
        "ImageScanIsOld",
        "warning",
        "time() - image_scan_timestamp_seconds > 3 * 86400 or image_scan_unread_images > 0",
        "30m",
        "The images that run were not all looked at for vulnerabilities within three days.",
        "Look at the last run of what calls make scan: it did not run, or could not read an image.",
    ),
    (
        "ApiServersDoNotAgree",
        "warning",
        "min(api_server_agrees and (api_server_gateways > 1)) == 0",
        "5m",
        "API servers do not know what the others do.",
        "Look at cache-server and at the log of api-server. Meanwhile each keeps to its share of every limit and of every server's places.",
    ),
    (
        "ModelHasProblem",
        "warning",
        'max by (model, kind) (ollama_model_problem{kind!="waiting"}) > 0',
        "10m",
        "{{ $labels.model }} cannot answer on a replica of the fleet: {{ $labels.kind }}.",
        "The log of the container ollama-agent says what it got, what it wants, and what to do; make explain repeats it.",
    ),
    (
        "ReplicaIsUnready",
        "warning",
        "ollama_ready == 0 and ollama_draining == 0",
        "15m",
        "A replica of the fleet takes no requests.",
        "The log of the container ollama-agent says why; make explain repeats it.",
    ),
    (
        "ModelsPushEachOtherOut",
        "warning",
        "sum by (model) (increase(ollama_model_evictions_total[1h])) > 6",
        "15m",
        "{{ $labels.model }} was unloaded {{ $value | humanize }} times in an hour before its time.",
        "Models that do not fit in memory together take turns, and each load costs its clients. Raise memory, or declare fewer models.",
    ),
    (
        "StoreHasNoRoom",
        "warning",
        "ollama_store_free_bytes / (ollama_store_free_bytes + ollama_store_bytes) < 0.05",
        "30m",
        "The volume of a replica has {{ $value | humanizePercentage }} of its room left.",
        "Raise storage.hot.size, or declare fewer models: a model that does not fit is not delivered.",
    ),
    (
        "CacheDropsEntries",
        "info",
        "rate(cache_evicted_keys_total[30m]) > 1",
        "30m",
        "The cache drops {{ $value | humanize }} entries a second to make room.",
        "Raise cache.maxMemory, where the share of hits is worth it.",
    ),
    (
        "GpuDriverDown",
        "warning",
        "nvml_up == 0",
        "10m",
        "The NVIDIA driver of {{ $labels.node }} does not answer, so nothing is known of its GPUs.",
        "Look at the log of metrics-exporter-gpu on that node: a driver that is missing, a runtime that hides it, or one that hangs.",
    ),
    (
        "GpuIsHeldBack",
        "warning",
        'max by (node, gpu, reason) (nvml_clocks_held_back{reason=~"heat|hardware"}) > 0',
        "15m",
        "GPU {{ $labels.gpu }} of {{ $labels.node }} runs slower than it could: {{ $labels.reason }}.",
        "Look at its temperature, the fans and the power supply of the machine.",
    ),
    (
        "GpuIsLost",
        "critical",
        "nvml_gpu_up == 0",
        "5m",
        "GPU {{ $labels.gpu }} of {{ $labels.node }} does not answer.",
        "Drain the node, and look at the kernel's log for Xid errors; the GPU needs a reset, or the machine a restart.",
    ),
    (
        "GpuHasErrors",
        "critical",
        "increase(nvml_ecc_uncorrected_errors_total[1h]) > 0",
        "0m",
        "GPU {{ $labels.gpu }} of {{ $labels.node }} had memory errors that could not be corrected.",
        "Drain the node and have the GPU reset or replaced.",
    ),
)


def rule_groups(objectives: ObjectivesArgs | None = None) -> list[dict[str, Any]]:
    """Groups of a Prometheus rule file, which are also those of a PrometheusRule. `objectives` None: the defaults."""
    promised = objectives or ObjectivesArgs()
    return [
        {"name": "modelfleet", "rules": [_rule(*each) for each in _RULES]},
        # Windows of days need no look every 15 s. The rules of a group see what those before them recorded.
        {
            "name": "modelfleet-objectives",
            "interval": "1m",
            "rules": [*records(promised), *(_rule(*each) for each in burn_alerts(promised))],
        },
    ]


def _rule(name: str, severity: str, expression: str, duration: str, summary: str, action: str) -> dict[str, Any]:
    return {
        "alert": name,
        "expr": expression,
        "for": duration,
        "labels": {"severity": severity},
        "annotations": {"summary": summary, "description": action, "runbook": f"{RUNBOOK}#{name.lower()}"},
    }
