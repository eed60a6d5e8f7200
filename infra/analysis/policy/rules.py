"""What must hold of every rendering, as plain functions over Kubernetes objects.

A rule takes all objects of a stack, because most mistakes are between two of them, and returns one line for each violation:
`<kind>/<name>: got X, want Y; do Z`. The rules run on rendered YAML, where nothing is unknown, and in the policy pack (__main__.py).
This module lists them; each subject has a module of its own.
"""

from collections.abc import Callable, Sequence

from infra.analysis.policy.connections import policies_allow_all_of_the_table, policies_allow_the_table_and_no_more
from infra.analysis.policy.guards import (
    claims_are_protected,
    gpu_shares_have_a_memory_limit,
    no_container_is_privileged,
    no_secret_is_in_plaintext,
    nothing_is_exposed_unasked,
    pods_stay_off_the_host,
    secrets_are_masked,
)
from infra.analysis.policy.network import (
    everything_is_denied_by_default,
    policies_select_pods_that_exist,
    policies_that_look_names_up_may_reach_dns,
    traffic_stays_near,
)
from infra.analysis.policy.objects import Object
from infra.analysis.policy.references import (
    budgets_keep_servers,
    classes_are_used,
    namespaces_of_pods_are_restricted,
    rights_are_narrow,
    services_reach_pods,
    volumes_are_mounted,
)
from infra.analysis.policy.scheduling import (
    gpu_pods_use_the_gpu_runtime,
    gpus_are_under_a_quota,
    no_container_gets_a_gpu_by_default,
    priorities_are_tiered,
    quotas_come_with_defaults,
    quotas_count_what_exists,
    runtime_classes_find_gpu_nodes,
)
from infra.analysis.policy.storage import (
    claims_are_used,
    claims_can_be_provisioned,
    replicas_share_one_download,
    storage_parameters_are_known,
    volumes_are_made_by_provisioners,
    volumes_are_where_their_pods_are,
)
from infra.analysis.policy.workloads import (
    config_maps_are_used,
    containers_ask_for_what_they_need,
    images_cannot_move,
    labels_match_selectors,
    mounts_have_volumes,
    nothing_is_mounted_into_roots_home,
    nothing_weakens_the_sandbox,
    objects_are_in_a_namespace,
    ollama_keeps_its_models_on_a_volume,
    pods_are_restricted,
    servers_are_probed,
    stateful_sets_have_their_service,
)

Rule = Callable[[Sequence[Object]], list[str]]

RULES: tuple[Rule, ...] = (
    images_cannot_move,
    labels_match_selectors,
    mounts_have_volumes,
    stateful_sets_have_their_service,
    claims_can_be_provisioned,
    storage_parameters_are_known,
    volumes_are_made_by_provisioners,
    claims_are_used,
    objects_are_in_a_namespace,
    pods_are_restricted,
    containers_ask_for_what_they_need,
    servers_are_probed,
    nothing_is_mounted_into_roots_home,
    gpu_pods_use_the_gpu_runtime,
    runtime_classes_find_gpu_nodes,
    quotas_count_what_exists,
    quotas_come_with_defaults,
    no_container_gets_a_gpu_by_default,
    priorities_are_tiered,
    everything_is_denied_by_default,
    policies_that_look_names_up_may_reach_dns,
    policies_select_pods_that_exist,
    replicas_share_one_download,
    traffic_stays_near,
    config_maps_are_used,
    no_container_is_privileged,
    pods_stay_off_the_host,
    nothing_is_exposed_unasked,
    gpu_shares_have_a_memory_limit,
    no_secret_is_in_plaintext,
    claims_are_protected,
    policies_allow_the_table_and_no_more,
    policies_allow_all_of_the_table,
    services_reach_pods,
    budgets_keep_servers,
    volumes_are_mounted,
    classes_are_used,
    rights_are_narrow,
    namespaces_of_pods_are_restricted,
    gpus_are_under_a_quota,
    volumes_are_where_their_pods_are,
    ollama_keeps_its_models_on_a_volume,
    nothing_weakens_the_sandbox,
)
RENDERING_RULES: tuple[Rule, ...] = (*RULES, secrets_are_masked)
"""For YAML that is kept and compared; a running stack's Secrets must hold their values."""


def violations(objects: Sequence[Object], rules: Sequence[Rule] = RULES) -> list[str]:
    """Every violation of every rule."""
    return [line for rule in rules for line in rule(objects)]
