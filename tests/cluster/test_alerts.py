"""Alerts fire by their causes on a cluster, and end with them, as a Prometheus judges that is fast (judge.py).

Real causes in real components: what is put in the place of something that takes days, or a machine that this one is not, says so in its
words, which docs/alerts.md repeats. Alerts on certificates are in test_served_by_tls.py, those on GPUs in test_devices.py.
"""

import asyncio
import base64
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from components.cache_tier import KEEPER
from components.contract import API_SERVER, CACHE_SERVER, METRICS_EXPORTER, MODEL_SERVER, OLLAMA, PORTS, SCAN_RESULT, SHARED_CLAIM
from infra.lifecycle import looking
from infra.lifecycle.forwarding import forwarded
from model_sync.catalog import FILE
from tests.cluster.conftest import MODEL, SERVER_ID, Stack
from tests.cluster.judge import Cause, Judge, again_and_again, all_end, judged_fast, one_after_the_other, side_by_side
from tests.cluster.kube import descendants, eventually, of_others

pytestmark = pytest.mark.cluster
REPLICA, KEPT = f"{OLLAMA}-0", "server-with-a-keeper"
DISK_MIB, LEFT_BYTES = 4, 16 * 1024
"""Of a replica that holds a model of 1 MiB; what is left is for its catalog."""
ENTRY_BYTES = 64 * 1024
"""Of what fills the cache."""
CHAT = {"messages": [{"role": "user", "content": "Say it."}], "max_tokens": 64}
SERVER, ENGINE = b"-m\0model_server\0", b"-m\0model_server.llama_cpp\0"
"""Of the command lines of a model server and of its engine."""
DAY_S = 86400


@dataclass(frozen=True)
class Scene:
    """What a cause has to do with."""

    stack: Stack
    judge: Judge

    @property
    def namespace(self) -> str:
        return self.stack.outputs.namespace


@pytest.fixture
def scene(stack: Stack) -> Iterator[Scene]:
    with judged_fast(stack) as judge:
        yield Scene(stack, judge)


def asked(stack: Stack, model: str, **fields: object) -> int:
    """The status of a chat's answer; 0 for none, as of an API server that is about to end."""
    headers = {"Authorization": f"Bearer {stack.key}"}
    body = {**CHAT, "model": model, **fields}
    try:
        return httpx.post(f"{stack.url}/v1/chat/completions", json=body, headers=headers, timeout=90, trust_env=False).status_code
    except httpx.TransportError:
        return 0


def wait_for(scene: Scene, workload: str) -> None:
    scene.stack.kube.run("rollout", "status", workload, "-n", scene.namespace, "--timeout=100s")


@contextmanager
def scaled(scene: Scene, workload: str, replicas: int) -> Iterator[None]:
    """Until the block ends."""
    kube = scene.stack.kube
    before = kube.get(workload, "-n", scene.namespace)["spec"]["replicas"]

    def scale(count: int) -> None:
        kube.run("scale", workload, "-n", scene.namespace, f"--replicas={count}")

    scale(replicas)
    try:
        if replicas:
            wait_for(scene, workload)
        yield
    finally:
        scale(before)
        wait_for(scene, workload)


def processes(scene: Scene, pod: str, wanted: bytes) -> list[int]:
    return found(scene.stack.kube.get("pod", pod, "-n", scene.namespace)["metadata"]["uid"], wanted)


def found(uid: str, wanted: bytes) -> list[int]:
    """Processes of a pod by a part of their command line: those of the embedded nodes are this machine's."""
    every: list[int] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            here = wanted in (process / "cmdline").read_bytes() and uid in (process / "cgroup").read_text()
        except OSError:
            continue
        every += [int(process.name)] if here else []
    return every


@contextmanager
def stopped(pids: Sequence[int]) -> Iterator[None]:
    """They do nothing, until the block ends."""
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            if Path(f"/proc/{pid}").exists():
                os.kill(pid, signal.SIGCONT)


def volume(scene: Scene, claim: str) -> Path:
    """The directory of a claim, on the embedded node that has it."""
    kube = scene.stack.kube
    name = kube.get("pvc", claim, "-n", scene.namespace)["spec"]["volumeName"]
    spec: Mapping[str, Any] = kube.get("pv", name)["spec"]
    return Path((spec.get("hostPath") or spec["local"])["path"])


# The exporter, and what it reads.


@contextmanager
def an_old_scan(scene: Scene) -> Iterator[None]:
    kube, stack = scene.stack.kube, scene.stack

    def leave(age_s: float, critical: int) -> None:
        result = {"finished": time.time() - age_s, "images": 9, "unread": 0, "vulnerabilities": {"critical": critical, "high": 4}}
        looking.keep(stack.target, stack.deployment, result)
        kube.touch(scene.namespace, METRICS_EXPORTER)

    leave(4 * DAY_S, 2)
    try:
        yield
    finally:
        leave(0, 0)


@contextmanager
def no_cache(scene: Scene) -> Iterator[None]:
    with scaled(scene, f"deployment/{API_SERVER}", 2):
        agree = lambda: scene.judge.query("api_server_agrees and api_server_gateways == 2")  # noqa: E731
        eventually(agree, lambda values: values == [1, 1], 60, "two API servers that agree")
        with scaled(scene, f"deployment/{CACHE_SERVER}", 0):
            yield


@contextmanager
def a_full_cache(scene: Scene) -> Iterator[None]:
    stack, kube, namespace = scene.stack, scene.stack.kube, scene.namespace
    pod = kube.get("deployment", CACHE_SERVER, "-n", namespace)["spec"]["template"]["spec"]
    secret = next(each["secret"]["secretName"] for each in pod["volumes"] if each["name"] == "auth")
    password = base64.b64decode(kube.get("secret", secret, "-n", namespace)["data"]["password"]).decode()
    names: list[str] = []
    with (
        forwarded(str(kube.kubectl), stack.deployment, namespace, CACHE_SERVER, PORTS[CACHE_SERVER], "redis") as url,
        redis.Redis.from_url(url, password=password) as client,
    ):
        room = int(str(client.config_get("maxmemory")["maxmemory"]))

        def fill(entries: int) -> None:
            own = [f"answer:filling-{len(names) + number}" for number in range(entries)]
            names.extend(own)
            script = "for _, key in ipairs(KEYS) do redis.call('SET', key, string.rep('x', ARGV[1])) end"
            client.eval(script, len(own), *own, ENTRY_BYTES)

        # In parts: a script makes room before it begins alone.
        for _ in range(room // (100 * ENTRY_BYTES) + 1):
            fill(100)
        try:
            with again_and_again(lambda: fill(20), 1):
                yield
        finally:
            client.delete(*names)


# The model server, which is asked by its own model.


@contextmanager
def no_model_server(scene: Scene) -> Iterator[None]:
    with scaled(scene, f"statefulset/{MODEL_SERVER}", 0):
        eventually(lambda: asked(scene.stack, SERVER_ID), lambda status: status == 503, 60, "it is gone")
        with again_and_again(lambda: asked(scene.stack, SERVER_ID), 0.1):
            yield


@contextmanager
def a_model_that_loads_for_ever(scene: Scene) -> Iterator[None]:
    uid = scene.stack.kube.get("pod", f"{MODEL_SERVER}-0", "-n", scene.namespace)["metadata"]["uid"]
    (before,) = found(uid, SERVER)
    for engine in engines(before):
        os.kill(engine, signal.SIGKILL)
    later, deadline = list[int](), time.monotonic() + 90
    servers = list[int]()
    # Without a pause: the engine must not get as far as its model, which takes a tenth of a second.
    while not later:
        assert time.monotonic() < deadline, "another engine"
        servers = servers or [pid for pid in found(uid, SERVER) if pid != before]
        later = [engine for pid in servers for engine in engines(pid)]
    with stopped(later):
        yield
    wait_for(scene, f"statefulset/{MODEL_SERVER}")


def engines(server: int) -> list[int]:
    """Those that a model server has started, from when they are programs of their own."""
    every: list[int] = []
    for pid in descendants(server):
        with suppress(OSError):
            every += [pid] if ENGINE in Path(f"/proc/{pid}/cmdline").read_bytes() else []
    return every


@contextmanager
def a_slow_engine(scene: Scene) -> Iterator[None]:
    """Each round has six streams that wait for longer than a second."""
    hung = processes(scene, f"{MODEL_SERVER}-0", ENGINE)
    streams = 6
    eventually(lambda: asked(scene.stack, SERVER_ID), lambda status: status == 200, 60, "an answer before")
    with ThreadPoolExecutor(streams) as pool:

        def late() -> None:
            with stopped(hung):
                waiting = [pool.submit(asked, scene.stack, SERVER_ID, stream=True) for _ in range(streams)]
                time.sleep(1.6)
            wait(waiting)

        with again_and_again(late, 0):
            yield


@contextmanager
def no_disk(scene: Scene) -> Iterator[None]:
    """A pod of the model server's, as one with vLLM and `cache.maxSize` is, but for the engine: nobody writes to the disk."""
    kube, namespace = scene.stack.kube, scene.namespace
    template = kube.get("statefulset", MODEL_SERVER, "-n", namespace)["spec"]["template"]
    spec, state = template["spec"], "/tmp/keeper.json"  # noqa: S108 (in the pod's own scratch volume)
    (server,) = spec["containers"]
    server["env"].append({"name": "MODEL_SERVER_KEEPER_FILE", "value": state})
    # No Service may send it requests.
    server["readinessProbe"] = {"exec": {"command": ["false"]}}
    server.pop("startupProbe")
    cache = {"name": "cache", "mountPath": "/cache"}
    keeper = {
        "name": KEEPER,
        "image": server["image"],
        "command": ["python3", "-m", "model_server.tier.keeper"],
        "env": [
            {"name": "KEEPER_DIRECTORY", "value": "/cache/tier"},
            {"name": "KEEPER_LIMIT_MIB", "value": "16"},
            {"name": "KEEPER_STATE_FILE", "value": state},
        ],
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "160Mi"}},
        "securityContext": server["securityContext"],
        "volumeMounts": [*(each for each in server["volumeMounts"] if each["mountPath"] == "/tmp"), cache],  # noqa: S108
    }
    spec["containers"].append(keeper)
    spec["volumes"] += [{"name": "models", "emptyDir": {}}, {"name": "cache", "emptyDir": {}}]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": KEPT, "namespace": namespace, "labels": template["metadata"]["labels"]},
        "spec": {**spec, "terminationGracePeriodSeconds": 5},
    }

    def mode(bits: str) -> None:
        code = f"import os; os.chmod('/cache/tier', 0o{bits})"
        kube.run("exec", "-n", namespace, KEPT, "-c", KEEPER, "--", "python3", "-c", code)

    with of_others(kube, pod):
        works = lambda: scene.judge.query("model_server_tier_keeper_failing")  # noqa: E731
        eventually(works, lambda values: values == [0], 90, "a keeper that works")
        mode("000")
        yield
        mode("755")
        # The alert must end before the pod goes, which would end it, too.
        scene.judge.ends(["KeeperFails"], {}, 60)


# The fleet, which is asked by the other model.


@contextmanager
def a_damaged_catalog(scene: Scene) -> Iterator[None]:
    # A replica without a copy of its own would wait for it, and nobody would tell.
    wait_for(scene, f"statefulset/{OLLAMA}")
    catalog = volume(scene, SHARED_CLAIM) / FILE
    before = catalog.read_bytes()
    catalog.write_bytes(b"{")
    try:
        yield
    finally:
        catalog.write_bytes(before)


@contextmanager
def a_full_disk(scene: Scene) -> Iterator[None]:
    """A file system of its own below the replica's claim: the machine's would be full for all."""
    kube = scene.stack.kube
    where = kube.get("pod", REPLICA, "-n", scene.namespace)["spec"]["nodeName"]
    node = next(each for each in scene.stack.cluster.nodes if each.name == where)
    disk = volume(scene, f"models-{REPLICA}")

    def on_node(*command: str) -> str:
        argv = ["nsenter", f"--mount={node.mount_namespace}", "--", *command]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout

    def start_again() -> None:
        kube.run("delete", "pod", REPLICA, "-n", scene.namespace)
        wait_for(scene, f"statefulset/{OLLAMA}")

    # Containers that run have the directory below, and go on with it.
    on_node("mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m,mode=0777", "disk-of-a-test", str(disk))
    try:
        start_again()
        free = int(on_node("stat", "--file-system", "--format=%a", str(disk))) * int(
            on_node("stat", "--file-system", "--format=%S", str(disk))
        )
        assert free < DISK_MIB * 2**20, "the model is there"
        on_node("sh", "-c", f"head -c {free - LEFT_BYTES} /dev/zero > {disk}/of-somebody-else")
        yield
        on_node("rm", f"{disk}/of-somebody-else")
        # It must end before the disk goes.
        scene.judge.ends(["StoreHasNoRoom"], {}, 60)
    finally:
        on_node("umount", "--lazy", str(disk))
        start_again()


@contextmanager
def long_prompts(scene: Scene) -> Iterator[None]:
    messages = [{"role": "user", "content": "a question " * 3000}]
    with again_and_again(lambda: asked(scene.stack, MODEL, messages=messages), 0.2):
        yield


@contextmanager
def models_that_are_pushed_out(scene: Scene) -> Iterator[None]:
    """As if another one needed the memory. The agent looks every two seconds."""
    loaded = lambda: bool(scene.judge.query("ollama_model_resident_bytes"))  # noqa: E731

    def turn() -> None:
        done = scene.stack.kube.exec(scene.namespace, REPLICA, "ollama", "stop", MODEL)
        assert done.returncode == 0, done.stderr
        eventually(loaded, lambda there: not there, 20, "the model is gone")
        # API servers may still have to hear of a replica that is new.
        eventually(lambda: asked(scene.stack, MODEL), lambda status: status == 200, 30, "an answer, by a load")
        eventually(loaded, bool, 20, "the model is there")

    with again_and_again(turn, 0):
        yield


@contextmanager
def no_way(scene: Scene) -> Iterator[None]:
    kube = scene.stack.kube
    before = kube.get("networkpolicy", OLLAMA, "-n", scene.namespace)["spec"]["ingress"]
    others = [rule for rule in before if API_SERVER not in json.dumps(rule)]
    assert len(others) == len(before) - 1

    def allow(rules: list[Any]) -> None:
        patch = json.dumps([{"op": "replace", "path": "/spec/ingress", "value": rules}])
        kube.run("patch", "networkpolicy", OLLAMA, "-n", scene.namespace, "--type=json", f"--patch={patch}")

    allow(others)
    try:
        yield
    finally:
        allow(before)


@contextmanager
def an_engine_that_hangs(scene: Scene) -> Iterator[None]:
    """Four clients have places at the replica, and six wait. The replica is unready within seconds, since Ollama asks its engine."""
    eventually(lambda: asked(scene.stack, MODEL), lambda status: status == 200, 60, "an answer before")
    with stopped(processes(scene, REPLICA, b"llama-server")), crowd(scene.stack, MODEL, 10):
        yield


@contextmanager
def a_crowd(scene: Scene) -> Iterator[None]:
    """Four have places at the replica, 64 may wait, and the others are refused. This lasts, since a slow engine stays ready."""
    eventually(lambda: asked(scene.stack, MODEL), lambda status: status == 200, 60, "an answer before")
    slow = processes(scene, REPLICA, b"llama-server")

    def stand_still() -> None:
        with stopped(slow):
            time.sleep(2)

    with again_and_again(stand_still, 0.2), crowd(scene.stack, MODEL, 90):
        yield


@contextmanager
def crowd(stack: Stack, model: str, size: int) -> Iterator[None]:
    """Clients that each ask again a second after an answer, until the block ends."""
    headers, limits = {"Authorization": f"Bearer {stack.key}"}, httpx.Limits(max_connections=size)

    async def ask(client: httpx.AsyncClient) -> None:
        while True:
            with suppress(httpx.TransportError):
                await client.post(f"{stack.url}/v1/chat/completions", json={**CHAT, "model": model})
            await asyncio.sleep(1)

    async def all_ask() -> None:
        async with httpx.AsyncClient(headers=headers, limits=limits, timeout=120, trust_env=False) as client, asyncio.TaskGroup() as group:
            clients = [group.create_task(ask(client)) for _ in range(size)]
            await ended.wait()
            for each in clients:
                each.cancel()

    loop, ended = asyncio.new_event_loop(), asyncio.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(loop.run_until_complete, all_ask())
        try:
            yield
        finally:
            loop.call_soon_threadsafe(ended.set)
    running.result()
    loop.close()


@contextmanager
def a_server_that_hangs(scene: Scene) -> Iterator[None]:
    with stopped(processes(scene, REPLICA, b"ollama\0serve")):
        yield
    wait_for(scene, f"statefulset/{OLLAMA}")


@contextmanager
def no_api_server(scene: Scene) -> Iterator[None]:
    with scaled(scene, f"deployment/{API_SERVER}", 0):
        yield


def cause(alerts: str, says: str, begins: Callable[[Scene], Any], **about: str) -> Cause[Scene]:
    return Cause(tuple(alerts.split()), says, begins, about)


LANES: Sequence[Sequence[Sequence[Cause[Scene]]]] = (
    (
        [
            cause(
                "ImagesAreVulnerable ImageScanIsOld", "the last scan is four days old, and found two critical vulnerabilities", an_old_scan
            )
        ],
        [cause("ModelHasProblem", "the catalog of the shared claim is damaged", a_damaged_catalog)],
    ),
    (
        [cause("CacheDown ApiServersDoNotAgree", "two API servers, and no cache server", no_cache)],
        [cause("CacheDropsEntries", "more entries than fit, which one client writes without end", a_full_cache)],
    ),
    (
        [cause("KeeperFails", "a disk for old prompts that cannot be read; the keeper is beside llama.cpp, in place of vLLM", no_disk)],
        [
            cause(
                "RequestsFail TurnsBudgetBurnsFast TurnsBudgetBurnsSlowly",
                "clients ask for the model of a server that is gone",
                no_model_server,
                model=SERVER_ID,
            )
        ],
        [cause("ModelServerEngineDown", "an engine that does not get on with loading its model", a_model_that_loads_for_ever)],
        [
            cause(
                "FirstTokenBudgetBurnsFast FirstTokenBudgetBurnsSlowly",
                "an engine that stops at each prompt for longer than promised, which is a second here",
                a_slow_engine,
                model=SERVER_ID,
            )
        ],
    ),
    (
        [
            cause("StoreHasNoRoom", "a small disk of a replica that somebody else has filled", a_full_disk),
            cause("PromptsDoNotFit", "prompts that are longer than the context", long_prompts, model=MODEL),
        ],
        [
            cause(
                "ModelsPushEachOtherOut",
                "a model that is unloaded again and again, by hand in place of another one that needs its memory",
                models_that_are_pushed_out,
                model=MODEL,
            )
        ],
        [cause("ModelServerUnreachable", "network policies without the way to the replicas", no_way, upstream=f"http://{OLLAMA}:11434")],
        [cause("RequestsWaitForServers", "an engine that hangs", an_engine_that_hangs, model=MODEL)],
        [cause("FleetIsFull", "a slow engine, and more clients than may wait", a_crowd, model=MODEL)],
        [cause("ReplicaIsUnready", "an Ollama that hangs", a_server_that_hangs)],
    ),
)
"""Causes of one lane touch the same component. A lane is of stages, one after the other; causes of a stage are there at once."""
LAST = cause("ApiServerNotSeen", "no API server", no_api_server)
CAUSES = (*(each for lane in LANES for stage in lane for each in stage), LAST)


@pytest.fixture
def no_scan(scene: Scene) -> Iterator[None]:
    """Afterwards, too: other tests begin without one."""
    yield
    scene.stack.kube.run("delete", "configmap", SCAN_RESULT, "-n", scene.namespace, "--ignore-not-found")
    scene.stack.kube.touch(scene.namespace, METRICS_EXPORTER)
    eventually(lambda: scene.judge.query("image_scan_images"), lambda values: not values, 150, "no scan is known any more")


@pytest.mark.timeout(900)
def test_alerts_fire_by_their_causes_and_end_with_them(scene: Scene, no_scan: None) -> None:
    side_by_side(scene.judge, scene, LANES)
    one_after_the_other(scene.judge, scene, [[LAST]])
    scene.stack.wait_for_ends()
    # The longest windows that look back are an hour of the rules, and six of a promise.
    all_end(scene.judge, CAUSES, 120)
