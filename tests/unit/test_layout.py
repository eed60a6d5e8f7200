"""Two clusters of one machine share no address."""

import re
from pathlib import Path

import pytest

from devcluster import cluster, layout
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


def test_another_container_runtime_needs_a_new_cluster() -> None:
    made = layout.create("one", 1, runtime="crio")
    assert layout.load("one") == made
    with pytest.raises(ClusterError, match="--runtime: got containerd, want crio as the running cluster 'one' has; run down first"):
        layout.create("one", 1)


def test_a_record_of_before_is_of_a_cluster_with_containerd_and_one_of_an_unknown_runtime_is_unreadable() -> None:
    made = layout.create("one", 1)
    record = made.state_dir / "cluster.json"
    record.write_text('{"slot": 11, "node_count": 1}')
    found = layout.load("one")
    assert found is not None and found.runtime == "containerd"
    record.write_text('{"slot": 11, "node_count": 1, "runtime": "other"}')
    with pytest.raises(layout.RecordError, match="got no readable record"):
        layout.load("one")


@pytest.mark.parametrize("name", ["", "Upper", "a/b", "1a", "x" * 40])
def test_an_unusable_name_is_refused(name: str) -> None:
    with pytest.raises(ClusterError, match="--name: got"):
        layout.load(name)


def test_a_cluster_is_named_after_its_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while nobody has a record yet, and where somebody's record is lost: two checkouts never mean the same cluster."""
    first = layout.default_name()
    monkeypatch.setattr(layout, "WORK", tmp_path / "second")
    second = layout.default_name()
    assert first != second
    assert all(re.fullmatch("modelfleet-[0-9a-f]{6}", name) for name in (first, second))
    layout.save(layout.Cluster(name=second, slot=99, node_count=1, checkout=tmp_path / "second"))
    (layout.clusters_dir() / second / "cluster.json").write_text("")
    assert layout.default_name() == second


def test_a_cluster_of_before_keeps_its_name() -> None:
    layout.create("modelfleet", 1)
    assert layout.default_name() == "modelfleet"


def test_an_unreadable_record_is_one_clear_error_and_hides_no_other_cluster() -> None:
    layout.create("one", 1)
    two = layout.create("two", 1)
    (layout.clusters_dir() / "one" / "cluster.json").write_text('{"slot":')
    with pytest.raises(ClusterError, match=r"one/cluster.json: got no readable record, want slot and node_count; run make down"):
        layout.load("one")
    assert layout.recorded() == [two]


def test_clusters_of_another_home_and_those_without_a_record_are_found_by_their_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = layout.create("one", 1)
    theirs = f"modelfleet modelfleet 2 {tmp_path}/elsewhere/modelfleet/clusters/modelfleet"
    lost = f"modelfleet two 1 {layout.clusters_dir()}/two"
    for name, alias in (("mf10-host", own.host_alias), ("mf11-host", theirs), ("mf12-host", ""), ("mf13-host", lost), ("eth0", "")):
        (tmp_path / "net" / name).mkdir(parents=True)
        (tmp_path / "net" / name / "ifalias").write_text(f"{alias}\n")
    monkeypatch.setattr(cluster, "LINKS", tmp_path / "net")
    assert cluster.of_others() == sorted([f"{tmp_path}/elsewhere/modelfleet/clusters/modelfleet", f"{layout.clusters_dir()}/two"])


def test_link_names_fit_the_kernel() -> None:
    widest = layout.Cluster(name="x", slot=505, node_count=3)
    assert all(len(name) <= 15 for name in (widest.host_link, widest.fabric_netns, *(node.netns for node in widest.nodes)))
