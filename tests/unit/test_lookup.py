"""Which name is asked for: that of a Service is made whole in a pod."""

from pathlib import Path

import pytest

from api_server.lookup import full_name

POD = "search team-a.svc.cluster.local svc.cluster.local cluster.local corp.example\nnameserver 10.96.0.10\noptions ndots:5\n"


@pytest.mark.parametrize(
    ("host", "resolv_conf", "asked"),
    [
        ("ollama", POD, "ollama.team-a.svc.cluster.local."),
        ("ollama", POD.replace("cluster.local", "k8s.corp"), "ollama.team-a.svc.k8s.corp."),
        ("ollama.other.svc", POD, "ollama.other.svc"),
        ("127.0.0.1", POD, "127.0.0.1"),
        ("::1", POD, "::1"),
        ("ollama", "search corp.example\nnameserver 192.0.2.1\n", "ollama"),
        ("ollama", "", "ollama"),
    ],
)
def test_a_service_is_asked_for_by_its_whole_name(tmp_path: Path, host: str, resolv_conf: str, asked: str) -> None:
    (tmp_path / "resolv.conf").write_text(resolv_conf)
    assert full_name(host, tmp_path / "resolv.conf") == asked


def test_without_the_file_a_name_stays(tmp_path: Path) -> None:
    assert full_name("ollama", tmp_path / "none") == "ollama"
