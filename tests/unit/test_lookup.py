"""Which name is asked for: that of a Service is made whole in a pod."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from api_server import servers
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


def test_a_large_fleet_is_looked_at_in_parts_and_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand connections at once would hold up the requests of that moment."""
    hosts, looking, most = [f"10.0.0.{number}" for number in range(200)], 0, 0
    nobody: Any = None

    async def addresses(*_: object) -> list[str]:
        return hosts

    async def probe(*_: object) -> None:
        nonlocal looking, most
        looking, most = looking + 1, max(most, looking + 1)
        await asyncio.sleep(0.001)
        looking -= 1

    monkeypatch.setattr(servers, "addresses", addresses)
    monkeypatch.setattr(servers.Servers, "_probe", probe)
    fleet = servers.Servers("http://fleet:1", 1)
    asyncio.run(fleet.refresh(nobody))
    assert list(fleet.addresses) == hosts
    assert 1 < most <= 32
