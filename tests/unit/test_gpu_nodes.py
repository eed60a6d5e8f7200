"""The files of a GPU node, by one command."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from components import node_runtime
from infra.preparation import gpu_nodes


def test_the_files_lie_at_their_paths_on_the_node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_nodes.main(["--stack", "prod", "--runtime", "containerd", "--into", str(tmp_path)]) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [str(path.relative_to(tmp_path)) for path in written] == [
        "etc/containerd/conf.d/99-nvidia.toml",
        "etc/nvidia-container-runtime/config.toml",
    ]
    toolkit = tomllib.loads(written[1].read_text())
    assert toolkit["nvidia-container-runtime"]["mode"] == "cdi"


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ({"enabled": False}, "modelfleet:gpu.enabled: got false, want true for GPU nodes"),
        ({"enabled": True}, "modelfleet:gpu.memory: got nothing, want one GPU's memory"),
        (
            {"enabled": True, "memory": "80Gi", "runtimeMode": "csv"},
            "modelfleet:gpu.runtimeMode: got 'csv', want 'cdi', 'auto' or 'legacy'",
        ),
    ],
)
def test_a_wrong_section_is_refused_and_nothing_written(
    section: dict[str, Any], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_nodes, "stack_config", lambda stack: {"modelfleet:gpu": section})
    assert gpu_nodes.main(["--runtime", "crio", "--into", str(tmp_path / "out")]) == 1
    assert line in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_unknown_stack_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_nodes.main(["--stack", "nowhere", "--runtime", "crio", "--into", "out"]) == 1
    assert "STACK: got 'nowhere', want one with a file Pulumi.<stack>.yaml in" in capsys.readouterr().err


def test_toml_survives_a_round_trip() -> None:
    document = {"a": 1, "b.c": {"d": True, "e": ["x", 'y"z']}, "f": {"g": {"h": ""}}}
    assert tomllib.loads(node_runtime.toml(document)) == document
