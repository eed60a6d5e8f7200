"""The dashboard of who uses the fleet and of who answers, by metrics of docs/metrics.md."""

from .panels import WINDOW, Board, Panel, quantiles, rate, share

FLEET = Board(
    "modelfleet",
    "Fleet and agents",
    {
        "Promises": (
            Panel(
                "Turns that got no answer",
                "percentunit",
                {f"modelfleet:turns_not_answered:ratio_rate{window}": f"{{{{model}}}} {window}" for window in ("1h", "1d", "3d")},
                "By the alert rules, which your Prometheus must have. monitoring.objectives says how many there may be.",
            ),
            Panel(
                "Streams whose first token came late",
                "percentunit",
                {f"modelfleet:first_tokens_late:ratio_rate{window}": f"{{{{model}}}} {window}" for window in ("1h", "1d", "3d")},
                "By the alert rules, which your Prometheus must have. monitoring.objectives says when that is.",
            ),
        ),
        "Turns": (
            Panel("Requests by status", "reqps", {rate("api_server_requests_total", "model, status"): "{{model}} {{status}}"}),
            Panel("Turns by why their server was chosen", "reqps", {rate("api_server_turns_total", "reason"): "{{reason}}"}),
            Panel(
                "Share of turns that stayed with their server",
                "percentunit",
                {share(rate('api_server_turns_total{reason="bound"}'), rate('api_server_turns_total{reason!="new"}')): "{{model}}"},
                "Of the turns of conversations that a server held.",
            ),
            Panel(
                "Share of reusable tokens that were still warm",
                "percentunit",
                {share(rate("api_server_cached_tokens_total"), rate("api_server_reusable_tokens_total")): "{{model}}"},
                "Of servers that say what they used. Ollama does not.",
            ),
            Panel("Time to first token", "s", quantiles("api_server_time_to_first_token_seconds")),
            Panel("Whole requests", "s", quantiles("api_server_request_duration_seconds")),
            Panel("Tokens of a stream by second", "short", quantiles("api_server_tokens_per_second")),
            Panel(
                "Tokens by second",
                "short",
                {
                    rate("api_server_prompt_tokens_total"): "{{model}} in",
                    rate("api_server_completion_tokens_total"): "{{model}} out",
                },
            ),
        ),
        "Queue": (
            Panel("Requests that wait for a server", "short", {"sum by (model) (api_server_waiting_requests)": "{{model}}"}),
            Panel("Wait of held requests", "s", quantiles("api_server_held_seconds")),
            Panel("Requests in work", "short", {"sum by (upstream, address) (api_server_in_flight_requests)": "{{address}}"}),
            Panel(
                "Tokens of conversations that servers hold",
                "short",
                {"max by (model) (api_server_held_tokens)": "{{model}}"},
                "Beside warm_tokens of the stack's output, how full the fleet is.",
            ),
            Panel("Memory for bodies of requests", "bytes", {"api_server_reserved_bytes": "{{instance}}"}),
        ),
        "Keys": (
            Panel("Requests by key", "reqps", {rate("api_server_key_requests_total", "key, status"): "{{key}} {{status}}"}),
            Panel("Tokens by key", "short", {rate("api_server_key_tokens_total", "key, kind"): "{{key}} {{kind}}"}),
            Panel("Servers at work for a key", "short", {rate("api_server_key_server_seconds_total", "key"): "{{key}}"}),
        ),
        "What was asked wrongly": (
            Panel("Requests that do not fit the context", "reqps", {rate("api_server_context_refusals_total"): "{{model}}"}),
            Panel("Prompts that a server had to count", "reqps", {rate("api_server_counted_prompts_total"): "{{model}}"}),
            Panel("Fields that no server takes", "reqps", {rate("api_server_dropped_fields_total", "model, field"): "{{model}} {{field}}"}),
        ),
        "Servers": (
            Panel(
                "Servers that take connections",
                "short",
                {
                    "sum by (upstream) (api_server_upstream_up)": "{{upstream}}",
                    "sum by (upstream) (api_server_upstream_out)": "{{upstream}}, but gets no requests",
                },
                "Each API server counts them.",
            ),
            Panel("Failed attempts", "reqps", {rate("api_server_upstream_errors_total", "upstream, reason"): "{{upstream}} {{reason}}"}),
            Panel(
                "Replicas of Ollama",
                "short",
                {"sum(ollama_up)": "answer", "sum(ollama_ready)": "take requests", "sum(ollama_draining)": "wait for their last requests"},
            ),
            Panel(
                "Servers that conversations and requests need",
                "short",
                {"max(api_server_needed_servers)": "needed, as one API server sees it", "sum(ollama_ready)": "there"},
                "By what the activator, or an autoscaler of yours, goes.",
            ),
            Panel("Connections of replicas", "short", {"ollama_connections": "{{instance}}"}),
            Panel(
                "API servers",
                "short",
                {"max(api_server_gateways)": "that take requests", "sum(api_server_agrees)": "that know what the others do"},
            ),
            Panel(
                "Requests of model servers",
                "short",
                {
                    "sum(model_server_running_requests)": "in work",
                    "sum(model_server_waiting_requests)": "that wait",
                    "sum(model_server_engine_up)": "engines that live",
                },
            ),
            Panel(
                "Answers of model servers",
                "reqps",
                {
                    rate("model_server_requests_total", "status"): "{{status}}",
                    f"sum(rate(model_server_refused_requests_total{WINDOW}))": "refused, as the queue was full",
                },
            ),
            Panel("First byte of model servers", "s", quantiles("model_server_time_to_first_byte_seconds", "")),
            Panel("Whole requests of model servers", "s", quantiles("model_server_request_duration_seconds", "")),
            Panel("Tokens that model servers write by second", "short", {f"sum(rate(model_server_generated_tokens_total{WINDOW}))": "all"}),
        ),
    },
)
