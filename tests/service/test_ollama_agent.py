"""The agent beside a real Ollama: ready when the models can answer, drained when nobody is connected, and honest about contexts."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from model_sync import catalog, gguf
from model_sync.catalog import Catalog, Entry
from model_sync.store import file_digest, manifest_path, sha256
from tests import tiny_gguf
from tests.service.ollama_pod import ADDRESS_V6, AGENT, CONTROL, OLLAMA, Pod, pod
from tests.service.processes import refused

TINY, SLOW, BROKEN = "tiny:1", "slow:1", "broken:1"
NO_GPU = rf"models\.{TINY}: got 0 of \d+ bytes on the GPU, want all of them; see that the pod has its GPU"
TOKENS = 300


@pytest.fixture
def server(tmp_path: Path, store: Path) -> Iterator[Pod]:
    with pod(tmp_path, store) as made:
        yield made


def write_catalog(server: Pod, *models: dict[str, Any]) -> None:
    entries = [{"digest": "", "context_length": 4096, "size": 1, "replicas": 1, "keep_alive": "-1"} | model for model in models]
    fresh = server.work / "catalog.partial"
    fresh.write_text(json.dumps({"version": 1, "models": entries}))
    fresh.replace(server.work / "catalog.json")


def digest(server: Pod, name: str) -> str:
    return sha256(server.store / manifest_path(name))


def scrape(server: Pod) -> dict[tuple[str, str], float]:
    text = server.get(f"{AGENT}/metrics").text
    return {
        (each.name, each.labels.get("model", "")): each.value for family in text_string_to_metric_families(text) for each in family.samples
    }


def stream(tokens: int = TOKENS, url: str = OLLAMA) -> tuple[str, bool]:
    """Text of one streamed answer, and whether it is whole."""
    text, done = "", False
    body = {"model": SLOW, "prompt": "Go.", "options": {"num_predict": tokens, "temperature": 0}}
    try:
        with httpx.stream("POST", f"{url}/api/generate", json=body, timeout=120, trust_env=False) as response:
            for line in response.iter_lines():
                event = json.loads(line)
                text += event.get("response", "")
                done = done or event.get("done", False)
    except httpx.HTTPError:
        pass
    return text, done


def test_trap_16_a_server_that_answers_is_not_ready_before_its_models_are(server: Pod) -> None:
    server.ollama()
    server.agent()
    assert server.get(f"{OLLAMA}/").text == "Ollama is running"
    assert server.status(f"{CONTROL}/ready") == 503
    assert server.reason() == f"no catalog at {server.work / 'catalog.json'} yet"
    write_catalog(server, {"name": TINY, "digest": "sha256:" + "0" * 64})
    server.until(lambda: server.reason().startswith(f"models.{TINY}: got digest"), "the wrong digest is named")
    write_catalog(server, {"name": TINY, "digest": digest(server, TINY)}, {"name": SLOW, "digest": digest(server, SLOW)})
    server.until(lambda: server.status(f"{CONTROL}/ready") == 200, "it is ready")
    # Each reason is in the log, once: `make explain` repeats the last one.
    server.until(lambda: " INFO ready: " in server.log("agent"), "ready is logged")
    logged = [line.rpartition(" unready: ")[2] for line in server.log("agent").splitlines() if " unready: " in line]
    assert len(logged) == len(set(logged)) >= 3, logged
    assert logged[0].startswith("no catalog at ")
    assert [each for each in logged if each.startswith(f"models.{TINY}: got digest")]
    loaded = {model["name"]: model for model in server.get(f"{OLLAMA}/api/ps").json()["models"]}
    assert loaded.keys() == {TINY, SLOW}
    # Loaded for ever, as the catalog says: its `-1` is no duration in Ollama's form.
    assert all(model["expires_at"] > "2200" for model in loaded.values())


def test_a_model_that_comes_later_leaves_the_others_ready(server: Pod) -> None:
    server.ollama()
    server.agent()
    write_catalog(server, {"name": TINY})
    server.until(lambda: server.status(f"{CONTROL}/ready") == 200, "it is ready")
    write_catalog(server, {"name": TINY}, {"name": "missing:1"})
    problem = "models.missing:1: got no such model in the store, want it; wait for the writer, or look at its log"
    server.until(lambda: problem in server.get(f"{AGENT}/context").text, "the model is missed")
    assert server.status(f"{CONTROL}/ready") == 200
    write_catalog(server, {"name": TINY}, {"name": SLOW})
    server.until(lambda: scrape(server).get(("ollama_model_proven", SLOW)) == 1, "the added model is loaded")
    assert server.status(f"{CONTROL}/ready") == 200
    (server.work / "catalog.json").write_text("{")
    server.until(lambda: "want a catalog of version 1" in server.log("agent"), "the broken catalog is named")
    assert server.status(f"{CONTROL}/ready") == 200


@pytest.fixture
def broken(server: Pod) -> str:
    """A model whose architecture no engine knows, in the server's own store, and before all others in the alphabet."""
    path = tiny_gguf.make(server.work / "m.gguf", "Never said.")
    path.write_bytes(path.read_bytes().replace(b"llama", b"nosuc"))
    own = server.work / "models"
    shutil.copytree(server.store, own, symlinks=True)
    gguf.add(BROKEN, path, own)
    server.store = own
    return BROKEN


def test_s01_a_model_that_cannot_be_loaded_harms_itself_alone(server: Pod, broken: str) -> None:
    """Also on a server that starts later, and `up` hears of it within a minute."""
    server.agent()
    for life in range(2):
        process = server.ollama()
        write_catalog(server, {"name": broken}, {"name": TINY})
        server.until(lambda: server.status(f"{CONTROL}/ready") == 200, f"it is ready in life {life}")
        assert server.post(f"{OLLAMA}/api/generate", model=TINY, prompt="?", stream=False).json()["response"].startswith("Hello")
        server.until(lambda: scrape(server).get(("ollama_model_problem", broken)) == 1, "the metric names it")
        assert scrape(server)["ollama_model_proven", broken] == 0
        process.kill()
        process.wait()
        server.until(lambda: server.reason() == "ollama does not answer", "it is unready")
    server.ollama()
    server.until(lambda: server.status(f"{CONTROL}/ready") == 200, "it is ready in its last life")
    started = time.monotonic()
    status, result = server.probe(MODELS=json.dumps({TINY: 1, broken: 1}), TIMEOUT_S="600", PATIENCE_S="5")
    assert time.monotonic() - started < 45
    assert status == 1
    assert result.startswith(f"models.{broken}: got /api/generate: 500 ")
    assert "unknown model architecture" in result
    assert result.endswith(", want it loaded; look at the log of container ollama (on ollama-0)")
    assert f" problems: models.{broken}: got /api/generate: 500 " in server.log("agent")
    write_catalog(server, {"name": TINY})
    server.until(lambda: ("ollama_model_problem", broken) not in scrape(server), "it is forgotten with its model")
    server.until(lambda: server.log("agent").rstrip().endswith("problems: none"), "the log says so, too")


def test_s01_a_model_whose_load_ends_the_server_is_not_loaded_for_ever(server: Pod, broken: str) -> None:
    """As the kernel does when a pod is out of memory: the whole container ends, and is started again."""
    weights = json.loads((server.store / manifest_path(broken)).read_text())["layers"][0]["digest"].replace(":", "-")
    server.engine(f"if any({weights!r} in each for each in sys.argv): os.kill(os.getppid(), signal.SIGKILL)")
    server.agent()
    write_catalog(server, {"name": broken}, {"name": TINY})
    for ends in (1, 2):
        process = server.ollama()
        assert process.wait(60) == -signal.SIGKILL
        says = f"models.{broken}: got the end of the server while it was loaded, {ends} times, want it loaded"
        server.until(lambda says=says: says in server.get(f"{AGENT}/context").text, "the model is blamed")
    process = server.ollama()
    server.until(lambda: server.status(f"{CONTROL}/ready") == 200, "the other one is served")
    time.sleep(6)  # Longer than the wait after a load that failed.
    assert process.poll() is None
    assert server.status(f"{CONTROL}/ready") == 200


def test_s01_nobody_can_ask_for_a_model_that_ends_the_server(server: Pod, broken: str) -> None:
    """The follower hides it, so a client's request for it cannot end the streams of the others. Another version of it is tried again."""
    shared, weights = server.store, json.loads((server.store / manifest_path(broken)).read_text())["layers"][0]["digest"].replace(":", "-")
    entries = [Entry(name, file_digest((shared / manifest_path(name)).read_bytes()), 1, 4096, 0, "-1") for name in (broken, TINY)]
    catalog.write(shared, Catalog(1, tuple(entries)))
    server.store = server.work / "hot"
    server.engine(f"if any({weights!r} in each for each in sys.argv): os.kill(os.getppid(), signal.SIGKILL)")
    server.agent(CATALOG=str(server.store / "catalog.json"))
    server.follower(shared)
    server.until(lambda: f"{TINY}: " in server.log("follower"), "both are copied")
    for _ in range(2):
        assert server.ollama().wait(60) == -signal.SIGKILL
    process = server.ollama()
    server.until(lambda: server.status(f"{CONTROL}/ready") == 200, "the other one is served")
    asked = server.post(f"{OLLAMA}/api/generate", model=broken, prompt="?", stream=False)
    assert (asked.status_code, asked.json()) == (404, {"error": f"model '{broken}' not found"})
    line = f"models.{broken}: got the end of the server while it was loaded, 2 times, want it loaded"
    assert catalog.read(server.store) == Catalog(1, (entries[1],), {broken: f"{line}; give the replica more memory, or remove the model"})
    assert scrape(server)["ollama_model_problem", broken] == 1
    status, result = server.probe(MODELS=json.dumps({TINY: 1, broken: 1}), PATIENCE_S="2")
    assert (status, result.partition(";")[0]) == (1, line)
    assert process.poll() is None
    # Another version, which loads.
    gguf.add(broken, tiny_gguf.make(server.work / "m.gguf", "Said after all."), shared)
    mended = dataclasses.replace(entries[0], digest=file_digest((shared / manifest_path(broken)).read_bytes()))
    catalog.write(shared, Catalog(1, (mended, entries[1])))
    server.until(lambda: scrape(server).get(("ollama_model_proven", broken)) == 1, "the new version is loaded")


def engines(server: Pod) -> list[int]:
    """Ids of the engines that run in the pod."""
    network = Path(f"/proc/{server.holder.pid}/ns/net").stat().st_ino
    found: list[int] = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "ns" / "net").stat().st_ino == network and b"llama-server" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


def test_s17_an_engine_that_hangs_is_named_and_the_kubelet_told(server: Pod) -> None:
    process = server.ollama()
    server.agent(ENGINE_SILENCE_S="7")
    write_catalog(server, {"name": TINY}, {"name": SLOW})
    server.until(lambda: server.status(f"{CONTROL}/ready") == 200, "it is ready")
    # While a long answer is made, an engine answers as before.
    answer, started = server.submit(lambda: stream(4000)), time.monotonic()
    while not answer.done() and time.monotonic() < started + 3 * 7:
        assert server.status(f"{CONTROL}/alive") == 200
        time.sleep(0.5)
    hung = engines(server)
    assert len(hung) == 2
    os.kill(hung[0], signal.SIGSTOP)
    server.until(lambda: server.status(f"{CONTROL}/alive") == 503, "the kubelet is told", 30)
    assert re.fullmatch(r"engine: got no answer on port \d+ for 7 s, want one; it hangs, and is started again", server.reason())
    assert server.status(f"{CONTROL}/ready") == 503
    assert server.status(f"{OLLAMA}/api/ps") == 200, "Ollama sees nothing of it"
    # As the kubelet ends a container.
    for each in (process.pid, *hung):
        os.kill(each, signal.SIGKILL)
    process.wait()
    server.until(lambda: server.status(f"{CONTROL}/alive") == 200, "nothing is known of what went", 30)
    server.ollama()
    server.until(lambda: server.status(f"{CONTROL}/ready") == 200, "it is ready again")


def test_s01_a_load_that_hangs_holds_up_no_other(server: Pod, broken: str) -> None:
    """As a template that loops: llama.cpp renders it once while it loads."""
    weights = json.loads((server.store / manifest_path(broken)).read_text())["layers"][0]["digest"].replace(":", "-")
    server.engine(f"if any({weights!r} in each for each in sys.argv): time.sleep(600)")
    server.ollama()
    server.agent(LOAD_TIMEOUT_S="3")
    write_catalog(server, {"name": broken}, {"name": TINY})
    server.until(lambda: server.status(f"{CONTROL}/ready") == 200, "the other one is served")
    assert server.post(f"{OLLAMA}/api/generate", model=TINY, prompt="?", stream=False).json()["response"].startswith("Hello")
    assert f"models.{broken}: got /api/generate: nothing for 3 s, want it loaded" in server.get(f"{AGENT}/context").text


def test_what_the_follower_could_not_bring_is_in_the_metric_and_ends_the_probe(server: Pod) -> None:
    server.ollama()
    server.agent()
    write_catalog(server, {"name": TINY})
    server.until(lambda: server.status(f"{CONTROL}/ready") == 200, "it is ready")
    document = json.loads((server.work / "catalog.json").read_text())
    line = "models.lost:1: got content sha256:00, want sha256:11; it is damaged, set delivery.verify and deploy to repair it"
    (server.work / "catalog.json").write_text(json.dumps(document | {"problems": {"lost:1": line}}))
    server.until(lambda: scrape(server).get(("ollama_model_problem", "lost:1")) == 1, "the metric names it")
    assert server.status(f"{CONTROL}/ready") == 200
    status, result = server.probe(MODELS=json.dumps({TINY: 1, "lost:1": 1}), PATIENCE_S="2")
    assert (status, result) == (1, f"{line} (on ollama-0)")
    (server.work / "catalog.json").write_text(json.dumps(document))
    server.until(lambda: ("ollama_model_problem", "lost:1") not in scrape(server), "it is gone when it came")


def test_a_model_that_should_be_on_the_gpu_and_is_not_makes_its_replica_unready(server: Pod) -> None:
    """There is no GPU here, so a replica that asks for one gets none, as where the driver is lost."""
    server.ollama()
    server.agent(GPU="1")
    write_catalog(server, {"name": TINY})
    started = time.monotonic()
    server.until(lambda: re.match(NO_GPU, server.reason()) is not None, "the reason is named")
    assert time.monotonic() - started < 60
    assert server.status(f"{CONTROL}/ready") == 503
    assert scrape(server)["ollama_model_problem", TINY] == 1
    status, result = server.probe(MODELS=json.dumps({TINY: 1}), PATIENCE_S="2")
    assert status == 1
    assert re.match(NO_GPU, result)


def test_b10_a_model_that_left_the_catalog_was_not_evicted(server: Pod) -> None:
    server.ollama()
    server.agent()
    write_catalog(server, {"name": TINY}, {"name": SLOW})
    server.until(lambda: scrape(server).get(("ollama_model_proven", SLOW)) == 1, "both are loaded")
    # As model_sync does it: first the catalog, then the server.
    write_catalog(server, {"name": TINY})
    server.post(f"{OLLAMA}/api/generate", model=SLOW, keep_alive=0)
    server.until(lambda: ("ollama_model_resident_bytes", SLOW) not in scrape(server), "it is unloaded")
    time.sleep(1)
    assert scrape(server).get(("ollama_model_evictions_total", SLOW), 0) == 0


def test_trap_08_and_09_what_counts_is_the_context_that_the_server_allocated(server: Pod) -> None:
    # The model was trained for 8192 tokens; Ollama takes the smaller number and says nothing.
    server.ollama(OLLAMA_CONTEXT_LENGTH="16384")
    server.agent()
    write_catalog(server, {"name": TINY, "context_length": 16384})
    refusal = (
        f"models.{TINY}: got effective context 8192, want 16384; lower its contextLength, or give it a model and memory that hold more"
    )
    server.until(lambda: server.reason() == refusal, "the short context is named")
    assert server.status(f"{CONTROL}/ready") == 503
    status, result = server.probe(MODELS=json.dumps({TINY: 1}))
    assert (status, result) == (1, refusal.replace("8192, want 16384", "8192 on ollama-0, want >= 16384"))
    write_catalog(server, {"name": TINY, "context_length": 8192})
    server.until(lambda: server.status(f"{CONTROL}/ready") == 200, "it is ready with what it has")
    assert server.probe(MODELS=json.dumps({TINY: 1})) == (0, f'{{"models": {{"{TINY}": 8192}}}}')
    status, result = server.probe(MODELS=json.dumps({TINY: 1}), MIN_CONTEXT="16384")
    assert (status, result) == (1, refusal.replace("8192, want 16384", "8192 on ollama-0, want >= 16384"))


def test_the_probe_waits_for_its_own_revision_and_says_what_is_missing(server: Pod) -> None:
    server.ollama()
    server.agent(REVISION="old")
    write_catalog(server, {"name": TINY})
    server.until(lambda: server.status(f"{CONTROL}/ready") == 200, "it is ready")
    status, result = server.probe(MODELS=json.dumps({TINY: 1}), REVISION="new", TIMEOUT_S="0.5")
    assert (status, result) == (
        1,
        "fleet: got 0 of 1 replicas of this revision answer after 0.5 s, want 1 ready replicas; run make explain",
    )
    status, result = server.probe(MODELS=json.dumps({TINY: 1, SLOW: 1}), REVISION="old", TIMEOUT_S="0.5")
    assert (status, result) == (1, f"fleet: got models.{SLOW} on 0 of 1 replicas after 0.5 s, want 1 ready replicas; run make explain")


def test_trap_18_sigterm_cuts_a_stream_and_a_drain_before_it_does_not(server: Pod) -> None:
    process = server.ollama()
    server.agent()
    write_catalog(server, {"name": SLOW})
    server.until(lambda: server.status(f"{CONTROL}/ready") == 200, "it is ready")
    cut = server.submit(stream)
    server.until(lambda: scrape(server)["ollama_connections", ""] == 1, "the stream runs")
    process.send_signal(signal.SIGTERM)
    assert cut.result()[1] is False, "Ollama ends its streams on SIGTERM"
    process.wait(10)

    process = server.ollama()
    server.until(lambda: server.status(f"{CONTROL}/ready") == 200, "it is ready again")
    whole = server.submit(stream)
    server.until(lambda: scrape(server)["ollama_connections", ""] == 1, "the stream runs")
    drain = server.submit(lambda: httpx.get(f"{CONTROL}/drain", timeout=120, trust_env=False).json())
    server.until(lambda: server.reason() == "draining", "it is unready at once")
    assert not whole.done()
    assert scrape(server)["ollama_draining", ""] == 1
    assert drain.result()["left"] == 0
    process.send_signal(signal.SIGTERM)
    text, done = whole.result()
    assert done
    assert len(text.split()) == TOKENS


def test_a_client_over_ipv6_counts_and_is_waited_for(server: Pod) -> None:
    server.with_ipv6()
    server.ollama()
    server.agent()
    write_catalog(server, {"name": SLOW})
    server.until(lambda: server.status(f"{CONTROL}/ready") == 200, "it is ready")
    assert server.probe(HOST=ADDRESS_V6, MODELS=json.dumps({SLOW: 1})) == (0, f'{{"models": {{"{SLOW}": 4096}}}}')
    whole = server.submit(lambda: stream(60, f"http://[{ADDRESS_V6}]:11434"))
    server.until(lambda: scrape(server)["ollama_connections", ""] == 1, "the stream runs")
    drain = server.submit(lambda: httpx.get(f"http://[{ADDRESS_V6}]:9466/drain", timeout=120, trust_env=False).json())
    assert drain.result()["left"] == 0
    text, done = whole.result()
    assert done
    assert len(text.split()) == 60


def test_a_drain_has_an_end(server: Pod) -> None:
    ollama = server.ollama()
    server.agent(DRAIN_S="1")
    write_catalog(server, {"name": SLOW})
    server.until(lambda: server.status(f"{CONTROL}/ready") == 200, "it is ready")
    # Long enough to outlast every look at it on a slow machine.
    running = server.submit(lambda: stream(8 * TOKENS))
    server.until(lambda: scrape(server)["ollama_connections", ""] == 1, "the stream runs")
    assert server.get(f"{CONTROL}/drain").json()["left"] == 1
    assert "1 connections left" in server.log("agent")
    assert scrape(server)["ollama_connections", ""] == 1, "the drain has cut nothing"
    # The rest of the stream says no more.
    ollama.kill()
    assert running.exception() is not None or not running.result()[1]


def test_a_server_that_was_started_anew_is_loaded_anew(server: Pod) -> None:
    first = server.ollama()
    server.agent()
    write_catalog(server, {"name": TINY})
    server.until(lambda: server.status(f"{CONTROL}/ready") == 200, "it is ready")
    first.kill()
    first.wait()
    server.until(lambda: server.reason() == "ollama does not answer", "it is unready")
    server.ollama()
    server.until(lambda: server.status(f"{CONTROL}/ready") == 200, "it is ready again")
    assert [model["name"] for model in server.get(f"{OLLAMA}/api/ps").json()["models"]] == [TINY]
    assert scrape(server)["ollama_model_evictions_total", TINY] == 0


def test_trap_19_metrics_of_a_server_that_has_none(server: Pod) -> None:
    server.ollama()
    server.agent()
    assert server.status(f"{OLLAMA}/metrics") == 404
    write_catalog(server, {"name": TINY})
    server.until(lambda: server.status(f"{CONTROL}/ready") == 200, "it is ready")
    found = scrape(server)
    assert (found["ollama_up", ""], found["ollama_ready", ""], found["ollama_catalog_models", ""]) == (1, 1, 1)
    assert found["ollama_model_context_length", TINY] == 4096
    assert found["ollama_model_resident_bytes", TINY] > 0
    assert found["ollama_model_resident_vram_bytes", TINY] == 0
    assert found["ollama_model_load_seconds", TINY] > 0
    assert found["ollama_store_bytes", ""] == sum(path.stat().st_size for path in (server.store / "blobs").iterdir())
    assert found["ollama_store_free_bytes", ""] > 0
    assert found["ollama_model_evictions_total", TINY] == 0


def test_trap_14_an_eviction_by_a_client_is_counted(server: Pod) -> None:
    server.ollama()
    server.agent()
    write_catalog(server, {"name": TINY})
    server.until(lambda: server.status(f"{CONTROL}/ready") == 200, "it is ready")
    assert server.post(f"{OLLAMA}/api/generate", model=TINY, keep_alive=0).json()["done_reason"] == "unload"
    server.until(lambda: scrape(server)["ollama_model_evictions_total", TINY] == 1, "the eviction is counted")
    assert "evicted before its keep-alive ended" in server.log("agent")
    # It can still answer, after a load; loading it again by ourselves would fight with whoever pushed it out.
    assert server.status(f"{CONTROL}/ready") == 200


@pytest.mark.parametrize(
    ("env", "line"),
    [
        ({"OLLAMA_AGENT_PORT": "high"}, "error: OLLAMA_AGENT_PORT: got 'high', want a valid integer"),
        ({"OLLAMA_AGENT_PROT": "1"}, "error: OLLAMA_AGENT_PROT: got an unknown variable, want one of OLLAMA_AGENT_"),
    ],
)
def test_bad_settings_are_one_clear_line(env: dict[str, str], line: str) -> None:
    status, errors = refused("ollama_agent", env)
    assert status == 2
    assert line in errors
