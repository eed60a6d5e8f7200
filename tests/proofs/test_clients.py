"""Claude Code, Codex and opencode, as npm has them and with their defaults, hold conversations through the gateway. Two of them use a tool,
and the same two ask for the models that they know, which are aliases here. 15 minutes, nearly all of it the reading of prompts of 30,000 to
120,000 tokens.

Needs Node.js and npm.
"""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from model_sync import gguf
from tests import tiny_gguf
from tests.proofs.records import ROOT, Proof
from tests.service.conftest import KEY, SCRIPT, start_api_server, start_model_server
from tests.service.processes import Service
from tests.service.test_gateway import metric

PROOF = Proof("clients", guards=("api_server", "model_server", "tests/proofs/clients", "tests/tiny_gguf.py"))
CONTEXT = 262_144
"""A token of the scripted model is a byte, and Claude Code's prompt has over 100,000 of them."""
TALKS, CALLS, EXECUTES = "talks:1", "calls:1", "executes:1"
MARK = "made-by-a-tool"
CALL = f'<tool_call>\n{{"name": "Bash", "arguments": {{"command": "touch {MARK}", "description": "A mark"}}}}\n</tool_call>'
EXECUTE = f'<tool_call>\n{{"name": "exec_command", "arguments": {{"cmd": "touch {MARK}"}}}}\n</tool_call>'
"""Codex's tool for a command, as of the version in the lock."""
KNOWN = re.compile(r"(?:claude|gpt)-[\w.-]+")
"""What models of their makers are called."""
LIMIT_S = 900


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the clients' commands."""
    npm = shutil.which("npm")
    assert npm is not None, "PATH: got no npm, want it for the clients of coding agents; install Node.js"
    work = tmp_path_factory.mktemp("clients")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(ROOT / "tests" / "proofs" / "clients" / name, work)
    # `npm ci` wants the packages of every other platform in the lock, too.
    subprocess.run([npm, "install", "--no-audit", "--no-fund", "--silent"], cwd=work, check=True, timeout=600)
    return work / "node_modules" / ".bin"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Service]:
    store, scripts = tmp_path / "models", {TALKS: SCRIPT, CALLS: CALL, EXECUTES: EXECUTE}
    for name, script in scripts.items():
        gguf.add(name, tiny_gguf.make(tmp_path / "model.gguf", script, context=CONTEXT), store)
    (tmp_path / "aliases").write_text("{}")
    with ExitStack() as stack:
        routes: dict[str, dict[str, object]] = {}
        for name in scripts:
            server = start_model_server(stack, store, tmp_path, name, CONTEXT_LENGTH=str(CONTEXT), PARALLEL="1", PROMPT_CACHE_MIB="2048")
            routes[name] = {"url": server.url, "model": name}
        yield start_api_server(stack, tmp_path, routes, QUEUE_S="600", ALIASES_FILE=str(tmp_path / "aliases"))


class Client:
    """One of the commands, in a home and a repository of its own."""

    def __init__(self, programs: Path, work: Path, **env: str) -> None:
        self._programs, self.place = programs, work / "work"
        self.place.mkdir()
        subprocess.run(["git", "init", "-q", self.place], check=True)
        self._env = {"PATH": os.environ["PATH"], "HOME": str(work), **env}
        self.complaint = ""
        """What the last command printed as errors."""

    def start(self, *argv: str) -> "subprocess.Popen[bytes]":
        command = [self._programs / argv[0], *argv[1:]]
        return subprocess.Popen(
            command, cwd=self.place, env=self._env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def run(self, *argv: str, status: int = 0) -> str:
        """What it prints. `status`: the one that it ends with; negative: any."""
        command = [self._programs / argv[0], *argv[1:]]
        done = subprocess.run(
            command, cwd=self.place, env=self._env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT_S
        )
        self.complaint = done.stderr
        assert status < 0 or done.returncode == status, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout


def claude(programs: Path, api: Service, work: Path, model: str = TALKS) -> Client:
    """`model`: empty for the client's own choice."""
    names = ("ANTHROPIC_MODEL", *(f"ANTHROPIC_DEFAULT_{size}_MODEL" for size in ("OPUS", "SONNET", "HAIKU")))
    told = dict.fromkeys(names, model) if model else {}
    quiet = {"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"}
    return Client(programs, work, ANTHROPIC_BASE_URL=api.url, ANTHROPIC_AUTH_TOKEN=KEY, **told, **quiet)


def codex(programs: Path, api: Service, work: Path, model: str = TALKS) -> Client:
    """`model`: empty for the client's own choice."""
    (work / ".codex").mkdir()
    provider = {
        "name": "fleet",
        "base_url": f"{api.url}/v1",
        "env_key": "FLEET_KEY",
        "wire_api": "responses",
        "stream_idle_timeout_ms": LIMIT_S * 1000,
    }
    lines = [f'model = "{model}"'] if model else []
    lines += ['model_provider = "fleet"', f"model_context_window = {CONTEXT}", "[model_providers.fleet]"]
    lines += [f"{name} = {json.dumps(value)}" for name, value in provider.items()]
    (work / ".codex" / "config.toml").write_text("\n".join(lines))
    return Client(programs, work, FLEET_KEY=KEY)


def opencode(programs: Path, api: Service, work: Path) -> Client:
    client = Client(programs, work, FLEET_KEY=KEY)
    model = {"name": TALKS, "limit": {"context": CONTEXT, "output": 4096}}
    provider: dict[str, Any] = {"npm": "@ai-sdk/openai-compatible", "name": "fleet", "models": {TALKS: model}}
    provider["options"] = {"baseURL": f"{api.url}/v1", "apiKey": "{env:FLEET_KEY}", "timeout": False}
    config = {
        "provider": {"fleet": provider},
        "model": f"fleet/{TALKS}",
        "small_model": f"fleet/{TALKS}",
        "autoupdate": False,
        "share": "disabled",
    }
    (client.place / "opencode.json").write_text(json.dumps(config))
    return client


TURNS: dict[str, tuple[Callable[[Path, Service, Path], Client], tuple[list[str], list[str]]]] = {
    "claude": (claude, (["claude", "-p", "Say it."], ["claude", "-p", "--continue", "And again."])),
    "codex": (
        codex,
        (
            ["codex", "exec", "--skip-git-repo-check", "Say it."],
            ["codex", "exec", "resume", "--skip-git-repo-check", "--last", "And again."],
        ),
    ),
    "opencode": (opencode, (["opencode", "run", "Say it."], ["opencode", "run", "--continue", "And again."])),
}


@pytest.mark.timeout(2 * LIMIT_S)
@pytest.mark.parametrize("name", TURNS)
def test_a_client_with_its_defaults_goes_on_where_its_prompt_is(
    programs: Path, api: Service, tmp_path: Path, name: str, figures: dict[str, Any]
) -> None:
    made, turns = TURNS[name]
    client = made(programs, api, tmp_path)
    for turn in turns:
        assert SCRIPT in client.run(*turn)
    found = {
        reason: metric(api, "api_server_turns_total", model=TALKS, reason=reason)
        for reason in ("new", "bound", "lost", "spilled", "paused")
    }
    cached, read = (metric(api, f"api_server_{what}_tokens_total", model=TALKS, reason="bound") for what in ("cached", "reusable"))
    figures[name] = {"version": client.run(name, "--version").strip(), "turns": found, "cached": cached, "reusable": read}
    assert found["bound"] >= 1
    assert cached >= 0.9 * read > 0


@pytest.mark.timeout(2 * LIMIT_S)
def test_claude_code_uses_a_tool(programs: Path, api: Service, tmp_path: Path) -> None:
    """The scripted model never stops calling it, so the conversation ends by its number of turns."""
    client = claude(programs, api, tmp_path, CALLS)
    client.run("claude", "-p", "Make a mark.", "--allowedTools", "Bash", "--max-turns", "2", status=1)
    assert (client.place / MARK).exists()


@pytest.mark.timeout(2 * LIMIT_S)
def test_codex_uses_a_tool(programs: Path, api: Service, tmp_path: Path) -> None:
    """It has no limit of turns, so it is stopped once the tool has run and its result has been sent."""
    client = codex(programs, api, tmp_path, EXECUTES)
    mark = client.place / MARK
    with client.start("codex", "exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", "Make a mark.") as running:
        deadline = time.monotonic() + LIMIT_S
        while not mark.exists() or metric(api, "api_server_turns_total", model=EXECUTES, reason="bound") < 1:
            assert running.poll() is None, "it ended without the tool"
            assert time.monotonic() < deadline
            time.sleep(0.5)
        running.terminate()


@pytest.mark.timeout(2 * LIMIT_S)
@pytest.mark.parametrize(
    ("made", "turn"), [(claude, ["claude", "-p", "Say it."]), (codex, ["codex", "exec", "--skip-git-repo-check", "Say it."])]
)
def test_a_client_asks_for_the_models_that_it_knows(
    programs: Path,
    api: Service,
    tmp_path: Path,
    made: Callable[[Path, Service, Path, str], Client],
    turn: list[str],
    figures: dict[str, Any],
) -> None:
    """Nothing tells it of a model. Each name that the gateway refuses becomes an alias, as an operator would see and do it."""
    client = made(programs, api, tmp_path, "")
    aliases: dict[str, dict[str, str]] = {}
    while SCRIPT not in (said := client.run(*turn, status=-1)):
        found = set(KNOWN.findall(said + client.complaint)) - set(aliases)
        assert found, (said, client.complaint)
        aliases |= {name: {"model": TALKS} for name in found}
        (tmp_path / "aliases.new").write_text(json.dumps(aliases))
        (tmp_path / "aliases.new").replace(tmp_path / "aliases")
        # An alias counts within a second.
        time.sleep(2)
    assert aliases
    figures[f"{made.__name__} asks for"] = sorted(aliases)
