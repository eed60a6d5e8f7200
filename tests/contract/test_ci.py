"""The workflows that users copy: they parse, they run the one command that runs here too, and they need no secret."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import yaml

from components.images import CONTEXTS
from infra.preparation.images import arguments, with_refs
from infra.program.settings.images import ImagesSettings

ROOT = Path(__file__).resolve().parents[2]
GITHUB: dict[Any, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / "preview.yml").read_text())
GITLAB: dict[str, Any] = yaml.safe_load((ROOT / ".gitlab-ci.yml").read_text())
SUMMARY = "build/preview/summary.md"
CHECKS: dict[Any, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / "checks.yml").read_text())
STEPS: list[dict[str, Any]] = GITHUB["jobs"]["preview"]["steps"]
RELEASE: dict[str, Any] = yaml.safe_load((ROOT / "examples" / "workflows" / "release.yml").read_text())["jobs"]["release"]
SCAN: dict[Any, Any] = yaml.safe_load((ROOT / "examples" / "workflows" / "scan.yml").read_text())
SCRIPTS = [
    [step["run"] for step in STEPS if "run" in step],
    GITLAB["preview"]["before_script"] + GITLAB["preview"]["script"],
]


def test_both_run_make_preview_once_and_repeat_nothing_of_it() -> None:
    for script in SCRIPTS:
        assert script.count("make preview") == 1
        assert not [line for line in script if re.search(r"\b(pip|pulumi|uv|pytest|infra\.)\b", line)]


def test_both_run_lint_and_the_tiers_without_a_cluster() -> None:
    wanted = ["make lint", *(f"make test TIER={tier}" for tier in ("unit", "component", "contract"))]
    assert CHECKS["jobs"]["checks"]["strategy"]["matrix"]["command"] == wanted
    assert GITLAB["checks"]["script"] == wanted


def test_the_target_exists_and_writes_the_summary() -> None:
    assert re.search(r"^preview:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert '"summary.md"' in (ROOT / "infra" / "analysis" / "preview.py").read_text()


def test_the_github_workflow_runs_on_pull_requests_shows_and_comments_the_summary() -> None:
    assert GITHUB[True] == "pull_request", "`on` is a boolean to YAML 1.1"
    job = GITHUB["jobs"]["preview"]
    assert job["env"] == {"BASE": "origin/${{ github.base_ref }}", "SUMMARY": SUMMARY}
    named = {step["name"]: step for step in STEPS if "name" in step}
    assert "$GITHUB_STEP_SUMMARY" in named["show"]["run"]
    assert "gh pr comment" in named["comment"]["run"]
    for name in ("show", "comment"):
        assert named[name]["if"].startswith("always()"), "a failed preview is what has to be read"
    assert GITHUB["permissions"] == {"contents": "read", "pull-requests": "write"}


def test_actions_are_pinned_by_commit() -> None:
    jobs = [STEPS, CHECKS["jobs"]["checks"]["steps"], RELEASE["steps"], SCAN["jobs"]["scan"]["steps"]]
    used = [step["uses"] for steps in jobs for step in steps if "uses" in step]
    assert used
    for action in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action), action


def test_the_gitlab_job_runs_on_merge_requests_and_shows_the_summary() -> None:
    job = GITLAB["preview"]
    assert job["rules"] == [{"if": '$CI_PIPELINE_SOURCE == "merge_request_event"'}]
    assert job["variables"]["BASE"] == "origin/$CI_MERGE_REQUEST_TARGET_BRANCH_NAME"
    assert job["artifacts"]["when"] == "always"
    assert SUMMARY.startswith(tuple(job["artifacts"]["paths"]))


def test_the_tools_are_kept_by_their_sums() -> None:
    cache = next(step["with"] for step in STEPS if step.get("uses", "").startswith("actions/cache@"))
    assert cache["path"] == "~/.cache/modelfleet"
    assert "hashFiles('tools/*/go.sum', 'tools/*.lock')" in cache["key"]
    for path in GITLAB["preview"]["cache"]["key"]["files"]:
        assert (ROOT / path).exists(), path


def test_no_go_is_asked_for() -> None:
    """It comes from its wheel, whose digest the project pins."""
    assert not [step for step in STEPS if "setup-go" in step.get("uses", "")]
    assert "golang" not in GITLAB["preview"]["image"]


def test_no_secret_is_needed_and_the_whole_history_is_there() -> None:
    """Only the look at the deployed stack needs one, where the repository says that it has a backend; a fork's request gets none."""
    with_secrets = [step for step in STEPS if "secrets." in str(step)]
    assert [step["name"] for step in with_secrets] == ["deployed"]
    assert with_secrets[0]["if"].startswith("vars.PULUMI_BACKEND_URL != '' && github.event.pull_request.head.repo.full_name ==")
    assert "secrets." not in str(CHECKS) + str(GITLAB)
    checkout = next(step for step in STEPS if step.get("uses", "").startswith("actions/checkout@"))
    assert checkout["with"]["fetch-depth"] == 0
    assert GITLAB["preview"]["variables"]["GIT_DEPTH"] == "0"


def test_the_release_builds_signs_and_deploys_in_this_order_by_commands_that_exist() -> None:
    """What they do is tested by themselves: tests/service/test_image_builds.py, test_image_trust.py."""
    script = "\n".join(step.get("run", "") for step in RELEASE["steps"])
    modules = re.findall(r"python -m (\S+)", script)
    assert modules == ["infra.preparation.images", "images.supply_chain"]
    assert all(importlib.util.find_spec(name) for name in modules)
    targets = re.findall(r"^make (\S+)", script, re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()
    assert targets == [".venv/.stamp", "up"]
    assert all(re.search(rf"^{re.escape(name)}:", makefile, re.MULTILINE) for name in targets)
    named = [step["name"] for step in RELEASE["steps"] if "name" in step]
    assert named == ["prepare", "build", "scan and sign", "deploy"]


def test_the_scan_of_what_runs_is_on_a_schedule_and_by_a_command_that_exists() -> None:
    """What it does is tested by itself: tests/unit/test_looking.py, tests/service/test_image_trust.py."""
    assert [each.keys() for each in SCAN[True]["schedule"]] == [{"cron"}]
    script = "\n".join(step.get("run", "") for step in SCAN["jobs"]["scan"]["steps"])
    assert re.findall(r"^make (\S+)", script, re.MULTILINE) == [".venv/.stamp", "scan"]
    assert re.search(r"^scan:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_a_release_builds_every_image_and_the_settings_take_all_of_them() -> None:
    args = arguments({"modelfleet:images": {"registry": "registry.example.com/fleet"}})
    assert args.images is None, "all that can be built"
    refs = {name: f"registry.example.com/fleet/{name}@sha256:{'0' * 64}" for name in CONTEXTS}
    section = yaml.safe_load(with_refs((ROOT / "Pulumi.prod.yaml").read_text(), refs))["config"]["modelfleet:images"]
    trusted = ImagesSettings.model_validate(section | {"trust": {"publicKeys": "-----BEGIN PUBLIC KEY-----"}})
    assert (trusted.builder, trusted.refs) == ("prebuilt", refs)


def test_the_release_gives_each_secret_to_one_step_and_prints_none() -> None:
    holders = {step["name"]: set(re.findall(r"secrets\.(\w+)", str(step))) for step in RELEASE["steps"] if "secrets." in str(step)}
    assert holders == {
        "prepare": {"REGISTRY_PASSWORD"},
        "scan and sign": {"COSIGN_KEY", "COSIGN_PASSWORD"},
        "deploy": {"KUBECONFIG", "PULUMI_CONFIG_PASSPHRASE"},
    }
    assert not [step for step in RELEASE["steps"] if "secrets." in step.get("run", "")]
