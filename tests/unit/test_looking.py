"""`make logs` and `make shell`: what kubectl is asked for, and what is refused before it is."""

import json
import time
from pathlib import Path

import pytest

from components.contract import SCAN_FILE, SCAN_RESULT
from infra.lifecycle import __main__ as lifecycle
from infra.lifecycle import looking, removal
from metrics_exporter.scan import Result

KUBECTL = """#!/bin/sh
for word; do printf '%s\\n' "$word"; done >> ASKED
case "$*" in
*' apply '*) cat > APPLIED; ! test -e FORBIDDEN ;;
*' get pods '*) cat PODS ;;
*' get pod/'*) printf 'api-server fleet/api-server@sha256:0\nother fleet/other@sha256:1\n' ;;
*unknown*) echo 'error: pod not found' >&2; exit 1 ;;
esac
"""


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a kubectl on the PATH is asked, a word a line; the file `pods` is what it lists."""
    program = tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    text = KUBECTL
    for name in ("asked", "pods", "applied", "forbidden"):
        text = text.replace(name.upper(), str(tmp_path / name))
    program.write_text(text)
    program.chmod(0o755)
    (tmp_path / "pods").write_text("pod/api-server-1\npod/api-server-2\n")
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(looking, "_is_production", lambda deployment: deployment.stack == "prod")
    monkeypatch.setattr("infra.lifecycle.deployment.Deployment.namespace", "fleet")
    return tmp_path / "asked"


def words(asked: Path) -> str:
    return " ".join(asked.read_text().split())


def test_logs_are_of_all_pods_of_one_component_or_of_one_pod(asked: Path) -> None:
    for of, wanted in (
        ("", "--tail=-1 --selector app.kubernetes.io/part-of=modelfleet"),
        ("ollama", "--tail=-1 --selector app.kubernetes.io/name=ollama"),
        ("ollama-0", "ollama-0"),
    ):
        asked.write_text("")
        assert lifecycle.main(["logs", "--context", "west", "--of", of, "--since", "1h"]) == 0
        assert "--context west --namespace fleet logs --all-containers --prefix --since=1h" in words(asked)
        assert words(asked).endswith(wanted)
        assert "--follow" not in words(asked)


def test_logs_are_followed_when_asked(asked: Path) -> None:
    assert lifecycle.main(["logs", "--context", "west", "--follow"]) == 0
    assert "--follow" in words(asked)


def test_a_shell_is_in_a_pod_of_the_component_that_runs(asked: Path) -> None:
    assert lifecycle.main(["shell", "--context", "west", "--of", "api-server"]) == 0
    assert "get pods --selector app.kubernetes.io/name=api-server --field-selector=status.phase=Running" in words(asked)
    assert words(asked).endswith("exec --stdin pod/api-server-1 -- sh")


def test_a_shell_is_in_the_container_that_is_named(asked: Path) -> None:
    assert lifecycle.main(["shell", "--context", "west", "--of", "ollama-0", "--container", "ollama-agent"]) == 0
    assert words(asked).endswith("exec --stdin ollama-0 --container ollama-agent -- sh")


def test_a_scan_is_of_each_image_that_runs_once_and_fails_with_what_it_cannot_trust(asked: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (asked.parent / "pods").write_text("fleet/a:1\nfleet/b:1\nfleet/a:1\n")
    assert lifecycle.main(["scan", "--context", "west"]) == 1
    said = capfd.readouterr().err
    assert [said.count(f"error: fleet/{name}:1: got a tag, want a digest") for name in "ab"] == [1, 1]
    assert "error: scan: got the lines above, want images without them" in said
    assert words(asked).endswith(
        "--context west --namespace fleet apply --server-side --field-manager=modelfleet-scan --force-conflicts --filename=-"
    )
    kept = json.loads((asked.parent / "applied").read_text())
    assert (kept["kind"], kept["metadata"]["name"]) == ("ConfigMap", SCAN_RESULT)
    assert list(removal._strangers(iter([kept]))) == [], "make down takes it for the stack's"
    result = Result.model_validate_json(kept["data"][SCAN_FILE])
    assert (result.images, result.unread, set(result.vulnerabilities.values())) == (2, 2, {0}), "what the exporter reads"
    assert abs(result.finished - time.time()) < 60
    (asked.parent / "forbidden").touch()
    assert lifecycle.main(["scan", "--context", "west"]) == 1
    assert "scan: ConfigMap/scan-result could not be written, so no metric and no alert knows" in capfd.readouterr().err
    assert lifecycle.main(["scan"]) == 1
    assert "error: scan: got no CONTEXT, want a cluster" in capfd.readouterr().err
    (asked.parent / "pods").write_text("")
    assert lifecycle.main(["scan", "--context", "west"]) == 1
    assert "error: scan: got no pod, want a stack that is up" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("more", "image", "container"),
    [
        ([], "fleet/api-server@sha256:0", "api-server"),
        (["--container", "other"], "fleet/other@sha256:1", "other"),
        (["--image", "tools:1"], "tools:1", "api-server"),
    ],
)
def test_a_debug_container_is_beside_the_container_and_may_do_no_more(asked: Path, more: list[str], image: str, container: str) -> None:
    assert lifecycle.main(["debug", "--context", "west", "--of", "api-server", *more]) == 0
    assert words(asked).endswith(f"debug --stdin pod/api-server-1 --image {image} --target {container} --profile=restricted -- sh")


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (["debug", "--of", "p", "--container", "none"], "error: CONTAINER: got none, want one of api-server, other; choose one of these"),
        (
            ["debug", "--of", "ollama", "--stack", "prod"],
            "error: STACK: got stack prod with governance.production, want one for development",
        ),
        (["shell"], "error: OF: got nothing, want a pod, or one of api-server, "),
        (
            ["shell", "--of", "ollama", "--stack", "prod"],
            "error: STACK: got stack prod with governance.production, want one for development",
        ),
        (["shell", "--of", "cache-server"], "error: OF: got cache-server, which has no pod that runs"),
        (["logs", "--of", "unknown"], "error: kubectl logs: got exit status 1, want 0; its message is above"),
    ],
)
def test_what_cannot_be_is_one_line(asked: Path, capfd: pytest.CaptureFixture[str], command: list[str], error: str) -> None:
    (asked.parent / "pods").write_text("")
    assert lifecycle.main([command[0], "--context", "west", *command[1:]]) == 1
    assert error in capfd.readouterr().err


class Configured:
    """A stack of this configuration."""

    def __init__(self, stack: str, config: str) -> None:
        self.stack, self.cli, self._config = stack, self, config

    def read_config(self) -> dict[str, object]:
        return json.loads(self._config)


def test_production_is_what_the_committed_or_the_private_configuration_says() -> None:
    assert looking._is_production(Configured("prod", "{}"))  # pyright: ignore[reportArgumentType]
    assert not looking._is_production(Configured("dev", "{}"))  # pyright: ignore[reportArgumentType]
    assert looking._is_production(Configured("dev", '{"modelfleet:governance": {"production": true}}'))  # pyright: ignore[reportArgumentType]
