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
    return [f"deb {main} bookworm main", f"deb {main} bookworm-updates main", f"deb {security} bookworm-security main"]


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


def test_apts_own_user_can_read_our_keys_and_reads_no_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A checkout in a private home is the usual one: Debian makes homes with mode 0700."""
    indexed(monkeypatch, DEBIAN)
    private = tmp_path / "home"
    private.mkdir(mode=0o700)
    keyring = private / "keys.gpg"
    keyring.write_bytes(system_images.KEYRING.read_bytes())
    keyring.chmod(0o600)
    monkeypatch.setattr(system_images, "KEYRING", keyring)
    monkeypatch.setenv("TMPDIR", str(private))
    with system_images.mmdebstrap(tmp_path / "layer.tar") as command:
        file, directory = (Path(each.removeprefix("--keyring=")) for each in command if each.startswith("--keyring="))
        assert list(directory.iterdir()) == [file]
        assert file.stat().st_mode & 0o004
        assert file.stat().st_size > 1000
        assert all(parent.stat().st_mode & 0o001 for parent in file.parents)
    assert not directory.exists()
