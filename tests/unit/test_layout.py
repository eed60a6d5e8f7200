"""Two clusters of one machine share no address."""

from pathlib import Path

import pytest

from devcluster import layout
from devcluster.layout import ClusterError


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


def test_two_clusters_have_their_own_addresses() -> None:
    one, two = layout.create("one", 2), layout.create("two", 3)
    assert one.slot != two.slot
    assert {node.address for node in one.nodes}.isdisjoint({node.address for node in two.nodes})
    assert {one.host_link, one.fabric_netns, one.cgroup_prefix}.isdisjoint({two.host_link, two.fabric_netns, two.cgroup_prefix})


def test_a_cluster_is_found_again_as_it_was() -> None:
    made = layout.create("one", 3)
    assert layout.load("one") == made
    assert layout.create("one", 3) == made


@pytest.mark.parametrize("count", [0, 4, -1])
def test_a_wrong_number_of_nodes_is_refused(count: int) -> None:
    with pytest.raises(ClusterError, match=rf"--nodes: got {count}, want 1..3; choose"):
        layout.create("one", count)


def test_another_number_of_nodes_needs_a_new_cluster() -> None:
    layout.create("one", 2)
    with pytest.raises(ClusterError, match="got 1, want 2 as the running cluster 'one' has; run down first"):
        layout.create("one", 1)


@pytest.mark.parametrize("name", ["", "Upper", "a/b", "1a", "x" * 40])
def test_an_unusable_name_is_refused(name: str) -> None:
    with pytest.raises(ClusterError, match="--name: got"):
        layout.load(name)


def test_link_names_fit_the_kernel() -> None:
    cluster = layout.Cluster(name="x", slot=249, node_count=3)
    assert all(len(name) <= 15 for name in (cluster.host_link, cluster.fabric_netns, *(node.netns for node in cluster.nodes)))
