"""What the images stand on is Debian 12, whatever the machine is."""

import subprocess
from pathlib import Path

import pytest

from devcluster import packages, system_images
from devcluster.layout import ClusterError

DEBIAN = "Debian\tDebian\tmain\thttp://mirror.example/debian/\nDebian\tDebian-Security\tmain\thttp://mirror.example/security/\n"
OTHERS = "Docker\tDocker CE\tstable\thttps://docker.example/\nHashiCorp\tDebian\tmain\thttps://vendor.example/\nDebian\tDebian\tnon-free\thttp://other.example/\n"


def indexed(monkeypatch: pytest.MonkeyPatch, *outputs: str) -> list[str]:
    """apt that has these indexes, one after each update; returns what else it was asked to do."""
    left, asked = list(outputs), []

    def run(argv: list[str], **_: object) -> "subprocess.CompletedProcess[str]":
        return subprocess.CompletedProcess(argv, 0, stdout=left[0])

    def apt(*arguments: str) -> None:
        asked.append(arguments[0])
        left.pop(0)

    monkeypatch.setattr(system_images.subprocess, "run", run)
    monkeypatch.setattr(packages, "apt", apt)
    return asked


def lines(main: str, security: str) -> list[str]:
    signed = f"deb [signed-by={system_images.KEYRING}]"
    return [f"{signed} {main} bookworm main", f"{signed} {main} bookworm-updates main", f"{signed} {security} bookworm-security main"]


def test_of_the_machine_comes_the_address_of_its_mirror_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    indexed(monkeypatch, OTHERS + DEBIAN)
    assert system_images.sources() == lines("http://mirror.example/debian/", "http://mirror.example/security/")


def test_a_machine_that_has_fetched_no_index_fetches_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = indexed(monkeypatch, "", DEBIAN)
    assert system_images.sources() == lines("http://mirror.example/debian/", "http://mirror.example/security/")
    assert asked == ["update"]


def test_a_machine_without_a_mirror_of_debian_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    indexed(monkeypatch, "", OTHERS)
    with pytest.raises(ClusterError, match=r"apt sources: got none of Debian and Debian-Security with component main, want both"):
        system_images.sources()


def test_the_keys_are_in_the_repository() -> None:
    assert Path(system_images.KEYRING).stat().st_size > 1000
