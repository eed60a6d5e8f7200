"""What the processes of an embedded node are told."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from devcluster import layout, node


@pytest.fixture
def kubelet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The configuration that the kubelet of a node is started with."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    (first,) = layout.create("one", 1).nodes
    node.write_config(first, tmp_path / "bin", "pause@sha256:0")
    return yaml.safe_load((first.directory / "config" / "kubelet.yaml").read_text())


def test_images_are_collected_before_the_disk_is_full(kubelet: dict[str, Any]) -> None:
    """The disk is the machine's own. Above the high threshold the kubelet removes images that no container uses, down to the low one; 100
    switches that off, and a low one that is no lower is refused (kubelet, pkg/kubelet/images/image_gc_manager.go)."""
    low, high = kubelet["imageGCLowThresholdPercent"], kubelet["imageGCHighThresholdPercent"]
    assert 0 < low < high < 100
    # Also on a disk so small that a twentieth of it is less than what is kept free: then the kubelet collects images before it evicts.
    assert kubelet["evictionHard"].keys() >= {"nodefs.available", "imagefs.available"}
