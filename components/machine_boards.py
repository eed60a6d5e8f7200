"""The dashboards of what the fleet stands on: GPUs, caches and storage, the cluster. Metrics that are not ours say whose they are."""

from .panels import WINDOW, Board, Panel, rate, share

_IN = '{namespace=~"$namespace"}'
_GPU = "{{node}} {{gpu}}"
GPUS = Board(
    "modelfleet-gpus",
    "GPUs",
    {
        "Use": (
            Panel(
                "GPUs that answer", "short", {"sum by (node) (nvml_gpu_up)": "{{node}}", "min by (node) (nvml_up)": "{{node}}, the driver"}
            ),
            Panel("Time with work", "percentunit", {"nvml_gpu_utilization_ratio": _GPU}, "A GPU that is cut by MIG has no such reading."),
            Panel("Memory in use", "percentunit", {"nvml_memory_used_bytes / nvml_memory_total_bytes": _GPU}),
            Panel(
                "Memory of MIG instances in use",
                "percentunit",
                {"nvml_mig_memory_used_bytes / nvml_mig_memory_total_bytes": _GPU + " {{instance}} {{model}}"},
            ),
        ),
        "By pod": (
            Panel(
                "GPU memory of models",
                "bytes",
                {"ollama_model_resident_vram_bytes": "{{instance}} {{model}}"},
                "An instance is a replica of the fleet. What other programs take on the same GPU is in the panels above alone.",
            ),
            Panel(
                "Part of a model that is in GPU memory",
                "percentunit",
                {"ollama_model_resident_vram_bytes / ollama_model_resident_bytes": "{{instance}} {{model}}"},
                "Below 100 %, the rest is computed by the CPU, many times slower.",
            ),
        ),
        "Held back": (
            Panel(
                "GPUs whose clocks are held back",
                "short",
                {"sum by (node, reason) (nvml_clocks_held_back)": "{{node}} {{reason}}"},
                "By their power cap, which is normal under full load; by heat, or by their hardware, which is not.",
            ),
            Panel("Temperature", "celsius", {"nvml_temperature_celsius": _GPU}),
            Panel("Power", "watt", {"nvml_power_watts": _GPU}),
            Panel("Energy of a day", "joule", {"sum by (node) (increase(nvml_energy_joules_total[1d]))": "{{node}}"}),
            Panel("Memory errors that were not corrected", "short", {"increase(nvml_ecc_uncorrected_errors_total[1h])": _GPU}),
        ),
    },
)
_HITS, _MISSES = f"rate(cache_keyspace_hits_total{WINDOW})", f"rate(cache_keyspace_misses_total{WINDOW})"
_REUSED, _READ = (f"sum(rate(model_server_{name}prompt_tokens_total{WINDOW}))" for name in ("reused_", ""))
_VOLUMES = "By the kubelet's own metrics, which your Prometheus must read."
STORAGE = Board(
    "modelfleet-storage",
    "Cache and storage",
    {
        "Tiers of models": (
            Panel(
                "Models in memory",
                "bytes",
                {"sum by (model) (ollama_model_resident_bytes)": "{{model}}"},
                "The fastest tier. Below it are the store of each replica, then the shared claim, then the sources.",
            ),
            Panel(
                "Stores of replicas", "bytes", {"ollama_store_bytes": "{{instance}}", "ollama_store_free_bytes": "{{instance}}, room left"}
            ),
            Panel("Loads", "s", {"ollama_model_load_seconds": "{{instance}} {{model}}"}, "What the last load of a model took."),
            Panel(
                "Models that made room for others",
                "short",
                {"sum by (model) (increase(ollama_model_evictions_total[1h]))": "{{model}}"},
                "In an hour. Models that take turns cost their clients a load each time.",
            ),
            Panel("Context of loaded models", "short", {"ollama_model_context_length": "{{instance}} {{model}}"}),
        ),
        "Deliveries": (
            Panel(
                "Models of a replica",
                "short",
                {"ollama_models_available": "{{instance}} has", "ollama_catalog_models": "{{instance}} should have"},
            ),
            Panel("Replicas on which a model has proven itself", "short", {"sum by (model) (ollama_model_proven)": "{{model}}"}),
            Panel("Problems", "short", {"sum by (model, kind) (ollama_model_problem)": "{{model}} {{kind}}"}),
        ),
        "Volumes": (
            Panel(
                "Volumes in use",
                "percentunit",
                {f"kubelet_volume_stats_used_bytes{_IN} / kubelet_volume_stats_capacity_bytes{_IN}": "{{persistentvolumeclaim}}"},
                _VOLUMES,
            ),
            Panel(
                "Files of volumes in use",
                "percentunit",
                {f"kubelet_volume_stats_inodes_used{_IN} / kubelet_volume_stats_inodes{_IN}": "{{persistentvolumeclaim}}"},
                _VOLUMES,
            ),
        ),
        "Time saved": (
            Panel(
                "Seconds saved in a minute",
                "s",
                {
                    f"60 * {rate('model_server_saved_seconds_total', 'tier')}": "{{tier}}",
                    f"60 * {rate('api_server_saved_seconds_total', 'tier')}": "{{tier}}",
                },
                "Of requests, as they would have waited for a server, so there may be more than 60. docs/cache.md says how they are "
                "counted, and what is not.",
            ),
            Panel(
                "Seconds saved in a day",
                "s",
                {
                    "sum by (tier) (increase(model_server_saved_seconds_total[1d]))": "{{tier}}",
                    "sum by (tier) (increase(api_server_saved_seconds_total[1d]))": "{{tier}}",
                },
            ),
            Panel(
                "Prompt tokens that are read by second",
                "short",
                {"model_server_prompt_tokens_per_second": "{{instance}}"},
                "By this speed the tokens of prompts become seconds. 0: it is not known yet, and no seconds are counted for them.",
            ),
        ),
        "Cache of answers": (
            Panel("Share of hits", "percentunit", {f"{_HITS} / ({_HITS} + {_MISSES})": "hits", "cache_up": "the cache answers"}),
            Panel("Look-ups of model servers", "reqps", {rate("model_server_cache_lookups_total", "outcome"): "{{outcome}}"}),
            Panel(
                "Texts to embed",
                "reqps",
                {rate("api_server_embeddings_total", "outcome"): "{{outcome}}"},
                "Those that were found had been embedded before, for the same key.",
            ),
            Panel("Memory in use", "percentunit", {"cache_used_memory_bytes / cache_max_memory_bytes": "cache-server"}),
            Panel("Entries dropped for room", "reqps", {f"rate(cache_evicted_keys_total{WINDOW})": "cache-server"}),
            Panel("Connections", "short", {"cache_connected_clients": "cache-server"}),
        ),
        "Cache of prompts": (
            Panel(
                "Share of tokens that model servers need not read again",
                "percentunit",
                {share(_REUSED, f"({_REUSED} + {_READ})"): "reused"},
            ),
            Panel(
                "Tokens that were not read again, by second",
                "short",
                {rate("model_server_reused_prompt_tokens_total", "tier"): "{{tier}}"},
                "engine: what it held, in slots, in its prompt cache, or in a GPU's memory; host: memory that vLLM moves old prompts to; "
                "disk: files.",
            ),
            Panel("Tokens kept over a restart of a model server", "short", {"model_server_restored_tokens": "{{instance}}"}),
            Panel(
                "Disk for old prompts in use",
                "percentunit",
                {"model_server_tier_bytes / model_server_tier_limit_bytes": "{{instance}}"},
                "Of model servers with vLLM, and with cache.maxSize.",
            ),
            Panel(
                "Files that went from it by second",
                "short",
                {
                    rate("model_server_tier_removed_files_total", "reason"): "{{reason}}",
                    f"sum(rate(model_server_tier_removed_bytes_total{WINDOW}))": "bytes",
                },
                "For the limit, for a disk that others fill, of models that nobody has any more, and what a killed engine left.",
            ),
            Panel(
                "Files, and the time since the oldest was used",
                "short",
                {"model_server_tier_files": "{{instance}}: files", "model_server_tier_oldest_seconds": "{{instance}}: seconds"},
            ),
            Panel(
                "Keepers",
                "short",
                {
                    "sum(model_server_tier_keeper_active)": "at work",
                    "sum(model_server_tier_keeper_failing)": "that fail",
                    "max(model_server_tier_writers)": "engines that write into one tier",
                    "max(model_server_tier_look_seconds)": "seconds of a look",
                },
            ),
        ),
    },
    of_a_namespace=True,
)
_KUBELET = "By cAdvisor, a part of every kubelet, which your Prometheus must read."
_STATE = "By kube-state-metrics, which your cluster must have and your Prometheus must read."
_BOTH = "By cAdvisor and by kube-state-metrics, which your Prometheus must read."
_CONTAINER = '{namespace=~"$namespace",container!="",container!="POD"}'


def _against(used: str, resource: str, bound: str) -> str:
    """What each container has of what it may have, or was promised."""
    of = f'kube_pod_container_resource_{bound}{{namespace=~"$namespace",resource="{resource}"}}'
    return f"sum by (pod, container) ({used}) / sum by (pod, container) ({of})"


def _network(what: str) -> dict[str, str]:
    return {rate(f"container_network_{way}_{what}_total{_IN}", "pod"): f"{{{{pod}}}} {text}" for way, text in
            (("receive", "in"), ("transmit", "out"))}  # fmt: skip


_CPU, _MEMORY = f"rate(container_cpu_usage_seconds_total{_CONTAINER}{WINDOW})", f"container_memory_working_set_bytes{_CONTAINER}"
CLUSTER = Board(
    "modelfleet-cluster",
    "Cluster",
    {
        "Containers": (
            Panel("CPU, of what was requested", "percentunit", {_against(_CPU, "cpu", "requests"): "{{pod}} {{container}}"}, _BOTH),
            Panel(
                "Time without CPU, by a limit",
                "percentunit",
                {
                    f"sum by (pod, container) (rate(container_cpu_cfs_throttled_periods_total{_CONTAINER}{WINDOW}))"
                    f" / sum by (pod, container) (rate(container_cpu_cfs_periods_total{_CONTAINER}{WINDOW}))": "{{pod}} {{container}}"
                },
                _KUBELET + " Pods of the stack have no limit of CPU.",
            ),
            Panel("Memory, of its limit", "percentunit", {_against(_MEMORY, "memory", "limits"): "{{pod}} {{container}}"}, _BOTH),
            Panel(
                "Restarts of an hour",
                "short",
                {f"sum by (pod, container) (increase(kube_pod_container_status_restarts_total{_IN}[1h]))": "{{pod}} {{container}}"},
                _STATE,
            ),
            Panel(
                "Containers that wait, and why",
                "short",
                {f"sum by (reason) (kube_pod_container_status_waiting_reason{_IN})": "{{reason}}"},
                _STATE,
            ),
            Panel(
                "Containers that were ended, and why",
                "short",
                {f"sum by (pod, reason) (kube_pod_container_status_last_terminated_reason{_IN})": "{{pod}} {{reason}}"},
                _STATE,
            ),
        ),
        "Pods": (
            Panel("Pods by phase", "short", {f"sum by (phase) (kube_pod_status_phase{_IN})": "{{phase}}"}, _STATE),
            Panel(
                "Quota in use",
                "percentunit",
                {
                    'sum by (resource) (kube_resourcequota{namespace=~"$namespace",type="used"})'
                    ' / sum by (resource) (kube_resourcequota{namespace=~"$namespace",type="hard"})': "{{resource}}"
                },
                _STATE,
            ),
            Panel("What Prometheus reads", "short", {f"sum by (job) (up{_IN})": "{{job}}"}, "Pods with metrics that answer."),
        ),
        "Network": (
            Panel("Traffic of pods", "Bps", _network("bytes"), _KUBELET),
            Panel("Packets that were dropped", "pps", _network("packets_dropped"), _KUBELET),
            Panel("Packets with errors", "pps", _network("errors"), _KUBELET),
        ),
        "Images": (
            Panel(
                "Vulnerabilities of the images that run",
                "short",
                {"sum by (severity) (image_scan_vulnerabilities)": "{{severity}}"},
                "Of the last make scan. Without one there is nothing here, and no alert.",
            ),
            Panel("Time since the last scan", "s", {"time() - image_scan_timestamp_seconds": "scan"}),
            Panel("Images of the last scan", "short", {"image_scan_images": "all", "image_scan_unread_images": "could not be read"}),
        ),
        "Certificate": (
            Panel(
                "Time that is left",
                "s",
                {"api_server_certificate_expiry_timestamp_seconds - time()": "{{instance}}"},
                "With apiServer.tls alone.",
            ),
        ),
    },
    of_a_namespace=True,
)
