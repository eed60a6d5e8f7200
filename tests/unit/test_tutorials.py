"""Each command of the tutorials is run by a test that is named here, or stands on the one list of what was not run by us."""

import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.program.settings import parse
from infra.program.settings.committed import stack_config
from infra.program.settings.section import SettingsError
from tests.overlay import laid_over, sections
from tests.tutorials import DIRECTORY, PAGES, blocks, commands, shown
from tests.unit.test_settings import REFS, document

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
LIST = DOCS / "not-run.md"
_CLUSTER = r"( CONTEXT=my-cluster STACK=prod)?"
_TEAM, _LOCAL = "tests/golden/test_tutorials.py", "tests/service/test_tutorials.py"
_WHOLE_PAGE = ("commands(PAGE)", '"second-team.md"')
RUN: dict[str, tuple[str, Sequence[str]]] = {
    r"make up": ("tests/proofs/test_fresh_root.py", ['ways.readme_command("make up")']),
    r"make down": ("tests/proofs/ways.py", ["readme_command('make down')"]),
    r"make up CONTEXT=my-cluster STACK=prod": ("tests/proofs/test_plain_pulumi.py", ["make -s up CONTEXT="]),
    r"make check CONTEXT=my-cluster STACK=prod": ("tests/cluster/test_cluster_check.py", ["cluster_check.check("]),
    r"make preview": ("tests/golden/test_preview.py", ['"infra.analysis.preview"']),
    rf"make explain{_CLUSTER}": ("tests/cluster/test_explain.py", ['"infra.lifecycle", "explain", "--context"']),
    rf"make key NAME=[\w-]+( REVOKE=1)?{_CLUSTER}": (
        "tests/cluster/test_changes_in_place.py",
        ['keys.change(stack.deployment, "alice", revoke=False)', 'keys.change(stack.deployment, "alice", revoke=True)'],
    ),
    r"make logs OF=[\w-]+( SINCE=5m)?": ("tests/unit/test_looking.py", ['lifecycle.main(["logs", "--context"']),
    r"make usage DAYS=1": ("tests/cluster/test_prometheus.py", ["usage.show("]),
    r"cd (examples/team|\.\./openhands)": (_TEAM, _WHOLE_PAGE),
    r"pulumi (stack init|stack output|config set) .*": (_TEAM, _WHOLE_PAGE),
    r"PYTHONPATH=\.\./\.\. pulumi up --yes": (_TEAM, _WHOLE_PAGE),
    r'grep -rh "LLM_" rendered': (_TEAM, _WHOLE_PAGE),
    r"(sha256sum|stat --format %s) coder\.gguf": (_LOCAL, ["commands(MODELS)[:3]"]),
    r"(?s)\.venv/bin/python -c '.*' coder\.gguf": (_LOCAL, ["commands(MODELS)[:3]"]),
    r"python3 -m http\.server 8001 --bind 198\.18\.10\.1": (_LOCAL, ['"http.server" in each']),
    r"read -rs MODELFLEET_API_KEY && export MODELFLEET_API_KEY": (_LOCAL, ['"MODELFLEET_API_KEY" in each']),
    r"printf .* \| curl -sS -H @- http://198\.18\.10\.11:30080/v1/models": (_LOCAL, ['"MODELFLEET_API_KEY" in each']),
    r"\.venv/bin/python -m infra\.preparation\.gpu_nodes --stack prod --runtime containerd --into build/gpu-node": (
        "tests/unit/test_gpu_nodes.py",
        ['gpu_nodes.main(["--stack", "prod", "--runtime", "containerd", "--into", str(tmp_path)])'],
    ),
}
"""Command, as a regular expression, to the file that runs it, or what it calls, and to the words there that do."""
_NOT_RUN = re.compile(
    r"(not|none of \w+ was|nothing of \w+ was|never) run( here| by us|\.$)|were not run|had no such", re.IGNORECASE | re.MULTILINE
)


def section(title: str) -> str:
    return LIST.read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def not_run() -> list[str]:
    """The commands of the list; `…` there stands for whatever the page has."""
    return re.findall(r"^\| `(.+?)` \| ", section("Tutorials"), re.MULTILINE)


def matches(command: str) -> list[str]:
    listed = [each for each in not_run() if re.fullmatch(re.escape(each).replace("…", ".*"), command)]
    return [each for each in RUN if re.fullmatch(each, command)] + listed


def unknown(page: Path) -> Iterator[str]:
    for command in commands(page):
        if len(found := matches(command)) != 1:
            yield f"{page.name}: {command}: got {len(found)} entries in RUN and docs/not-run.md, want one"


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_every_command_is_run_by_a_test_or_stands_on_the_list(page: Path) -> None:
    assert commands(page)
    assert list(unknown(page)) == []
    # Whatever a reader types stands in a block of `sh`.
    assert set(re.findall(r"^```(\w*)", page.read_text(), re.MULTILINE)) <= {"", "sh", "text", "yaml"}
    assert len(re.findall(r"^```$", page.read_text(), re.MULTILINE)) == len(re.findall(r"^```\w+$", page.read_text(), re.MULTILINE))


@pytest.mark.parametrize(
    "command", ["make everything", "kubectl delete namespace modelfleet", "make up CONTEXT=other STACK=prod", "pulumi destroy"]
)
def test_a_command_that_nobody_runs_is_noticed(command: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# A page\n\n```sh\nmake up\n{command}\n```\n")
    assert list(unknown(page)) == [f"page.md: {command}: got 0 entries in RUN and docs/not-run.md, want one"]


@pytest.mark.parametrize("pattern", RUN)
def test_what_runs_a_command_is_there(pattern: str) -> None:
    path, words = RUN[pattern]
    text = (ROOT / path).read_text()
    assert [each for each in words if each not in text] == []


def test_no_entry_is_left_over() -> None:
    every = [command for page in PAGES for command in commands(page)]
    assert [each for each in RUN if not any(re.fullmatch(each, command) for command in every)] == []
    assert [each for each in not_run() if not any(each in matches(command) for command in every)] == []


def test_make_knows_every_target_and_variable_of_the_tutorials() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for command in (each for page in PAGES for each in commands(page) if each.startswith("make ")):
        target, *assignments = command.split()[1:]
        assert re.search(rf"^{target}: (machine )?\.venv/\.stamp ##", makefile, re.MULTILINE), command
        for name in (each.partition("=")[0] for each in assignments):
            assert f"call typed,{name})" in makefile, command


def test_what_a_page_says_was_not_run_is_on_the_list() -> None:
    saying = {
        path.relative_to(DOCS).as_posix()
        for path in sorted(DOCS.glob("*.md"))
        if path not in (LIST, DOCS / "proofs.md", DOCS / "README.md") and _NOT_RUN.search(path.read_text().replace("\n", " "))
    }
    assert {"gpu-nodes.md", "pools.md", "tls.md", "gateway.md", "images.md", "reports.md", "try.md"} <= saying
    linked = set(re.findall(r"\]\(([\w-]+\.md)", section("Platforms and products")))
    assert saying - linked == set()


STACKS = {"add-a-model": "dev", "openhands": "dev", "gpu-pool": "prod"}


def stages(page: str) -> list[dict[str, Any]]:
    """The committed stack with the page's first lines, and with each further part of them."""
    found = [document(STACKS[page]) | {"images": {"refs": REFS}}]
    for block in blocks(DIRECTORY / f"{page}.md", "yaml"):
        found.append(laid_over(found[-1], sections(yaml.safe_load(block))))
    return found[1:]


def configured(page: str) -> dict[str, Any]:
    return stages(page)[-1]


def refusal(config: dict[str, Any]) -> str:
    with pytest.raises(SettingsError) as error:
        parse(config)
    return str(error.value)


def beginnings(page: str) -> list[str]:
    """What the page shows of lines that it cuts off with `…` at their ends."""
    return [line.removesuffix("…") for block in shown(DIRECTORY / f"{page}.md") for line in block.splitlines() if line.endswith("…")]


@pytest.mark.parametrize("page", STACKS)
def test_the_lines_of_a_stack_file_are_whole(page: str) -> None:
    assert stages(page)
    for stage in stages(page):
        parse(stage)


def test_a_key_is_announced_as_the_page_shows_it() -> None:
    source = (ROOT / "infra" / "lifecycle" / "keys.py").read_text()
    assert "say(f\"key: {name} is {'revoked' if revoke else 'accepted'}; \"" in source
    assert 'f"{len(pods)} pods of the API server read it now, within 5 s"' in source
    for page, pods in (("openhands", 1), ("second-team", stack_config("prod")["modelfleet:apiServer"]["replicas"])):
        (line,) = (each for block in shown(DIRECTORY / f"{page}.md") for each in block.splitlines() if each.startswith("key: "))
        assert line.endswith(f" is accepted; {pods} pods of the API server read it now, within 5 s")


def test_the_refusals_that_pages_show_are_the_programs() -> None:
    small = laid_over(configured("add-a-model"), {"fleet": {"resources": {"memory": "1Gi"}}})
    assert any(refusal(small).startswith(each) for each in beginnings("add-a-model"))
    many = laid_over(configured("gpu-pool"), {"fleet": {"numParallel": 8}})
    assert any(refusal(many).removeprefix("modelfleet:").startswith(each) for each in beginnings("gpu-pool"))


def test_the_line_of_a_replica_without_a_gpu_is_the_measured_one() -> None:
    said = json.loads((ROOT / "bench" / "results" / "gpu.json").read_text())["fleet"]["no_gpu"]["said"]
    assert any(said.startswith(each) for each in beginnings("gpu-pool"))


def test_the_arithmetic_of_the_pages_is_that_of_their_stack_files() -> None:
    (facts,) = (block for block in shown(DIRECTORY / "add-a-model.md") if "block_count" in block)
    known = {line.split()[0].rpartition(".")[2]: line.split()[1] for line in facts.splitlines()}
    (model,) = (each for each in configured("add-a-model")["models"] if each["name"].startswith("coder"))
    per_token = 2 * int(known["block_count"]) * int(known["head_count_kv"]) * int(known["key_length"]) * 2
    assert model["kvBytesPerToken"] == per_token
    assert f"= {per_token}." in (DIRECTORY / "add-a-model.md").read_text()


def test_gpu_files_are_listed_as_the_command_prints_them() -> None:
    test = (ROOT / "tests" / "unit" / "test_gpu_nodes.py").read_text()
    (listed,) = (block for block in shown(DIRECTORY / "gpu-pool.md") if "99-nvidia" in block)
    for line in listed.splitlines():
        assert f'"{line.removeprefix("build/gpu-node/")}"' in test


def test_the_tools_of_make_are_asked_for_as_make_takes_them() -> None:
    """make itself reads each command, and runs nothing."""
    for command in {each for page in PAGES for each in commands(page) if each.startswith("make ")}:
        done = subprocess.run(["make", "-n", "-o", ".venv/.stamp", *command.split()[1:]], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_what_accepts_each_kind_of_page_is_there() -> None:
    table = (DOCS / "acceptance.md").read_text().partition("Documentation stands in no phase.")[2]
    named = re.findall(r"`(tests/[\w/]+\.py)`", table)
    assert len(named) >= 12
    assert [each for each in named if not (ROOT / each).is_file()] == []
