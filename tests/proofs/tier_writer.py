"""Run by vLLM's Python: writers of the bounded tier. Each line of standard input makes one more, whose pid is printed; a pid ends that one.

A writer stores blocks at full speed, whose bytes follow from their keys, reads some of them again, and damages a few. It exits with 3 and a
line when a block has other bytes, when a damaged one is taken, and when a file is gone that it wrote less than YOUNG_S ago.
"""

import hashlib
import os
import random
import signal
import sys
import time
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from vllm.v1.kv_offload.base import ReqContext, make_offload_key  # pyright: ignore[reportMissingImports]
from vllm.v1.kv_offload.tiering.base import TransferJob  # pyright: ignore[reportMissingImports]

from model_server.tier.vllm_tier import BoundedFileTier

DIRECTORY, BLOCK, YOUNG_S = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
CHUNKS = 16
HOT = 8
"""Blocks of one request that is always there: the tier hears of them, as of a conversation that goes on."""


def specification() -> SimpleNamespace:
    """What vLLM's tier reads of an engine: one with a model of its own."""
    parallel = SimpleNamespace(tp_size=1, pp_size=1, pcp_size=1, dcp_size=1, rank=0, is_parallelism_agnostic=True)
    config = SimpleNamespace(
        groups=[SimpleNamespace(tokens_per_block=16, layer_names=["layers.0"])],
        parallel=parallel,
        model=SimpleNamespace(name="org/made-up", dtype="bfloat16"),
        cache=SimpleNamespace(tokens_per_hash=16),
        canonical_layout=False,
        replicated_layout=False,
    )
    return SimpleNamespace(config=config, blocks_per_chunk=1, kv_events_config=SimpleNamespace(enable_kv_cache_events=False))


def content(number: int) -> bytes:
    return hashlib.sha256(number.to_bytes(8, "big")).digest() * (BLOCK // 32)


def key(number: int) -> bytes:
    return make_offload_key(hashlib.sha256(b"key" + number.to_bytes(8, "big")).digest(), 0)


def fail(text: str) -> None:
    print(text, flush=True)
    os._exit(3)


def damage(path: Path) -> None:
    """As a disk does: one bit, and no time of the file says so."""
    try:
        with path.open("r+b") as file:
            file.seek(BLOCK // 2)
            byte = file.read(1)[0]
            file.seek(BLOCK // 2)
            file.write(bytes([byte ^ 1]))
    except FileNotFoundError:
        return


class Writer:
    def __init__(self) -> None:
        self.memory = np.zeros((CHUNKS, BLOCK), dtype=np.uint8)
        self.tier = BoundedFileTier(specification(), self.memory.data, "bounded", root_dir=DIRECTORY, n_read_threads=2, n_write_threads=2)
        self.jobs = 0
        self.context = ReqContext(req_id="one")

    def moved(self, numbers: list[int], load: bool) -> bool:
        """Store or load blocks, in chunks 0 and on; whether that went well."""
        self.jobs += 1
        keys = [key(number) for number in numbers]
        job = TransferJob(job_id=self.jobs, keys=keys, chunk_ids=np.arange(len(keys)), is_promotion=load, req_context=self.context)
        (self.tier.submit_load if load else self.tier.submit_store)(job)
        self.tier.drain_jobs()
        return all(result.success for result in self.tier.get_finished_jobs())

    def run(self) -> None:
        numbers = random.Random(os.getpid())  # noqa: S311
        hot = list(range(HOT))
        recent: deque[tuple[float, Path]] = deque()
        while True:
            fresh = hot if numbers.random() < 0.05 else [numbers.getrandbits(40) for _ in range(CHUNKS)]
            for chunk, number in enumerate(fresh):
                self.memory[chunk] = np.frombuffer(content(number), dtype=np.uint8)
            if not self.moved(fresh, load=False):
                fail("a block could not be written")
            now = time.time()
            paths = [Path(self.tier.file_mapper.get_file_name(key(number))) for number in fresh]
            intact = fresh != hot  # the other one may damage those
            recent.extend((now, path) for path in paths if intact and path.exists() and path.stat().st_mtime > now - YOUNG_S / 2)
            self.tier.touch([key(number) for number in hot], self.context)
            while recent and now - recent[0][0] > YOUNG_S / 4:
                when, path = recent.popleft()
                if not path.exists() and now - when < YOUNG_S / 2:
                    fail(f"{path} is gone after {now - when:.2f} s")
            self.memory[:] = 0
            # vLLM asks first what is there, too.
            there = [number for number, path in zip(fresh[:HOT], paths, strict=False) if path.exists()]
            damaged = bool(there) and numbers.random() < 0.1
            if damaged:
                recent.clear()  # what is damaged is removed at once
                damage(Path(self.tier.file_mapper.get_file_name(key(numbers.choice(there)))))
            if there and self.moved(there, load=True):
                if damaged:
                    fail("a damaged block was taken")
                for chunk, number in enumerate(there):
                    if self.memory[chunk].tobytes() != content(number):
                        fail("a block has other bytes")


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for line in sys.stdin:
        if line.strip() == "start":
            pid = os.fork()
            if not pid:
                Writer().run()
            print(pid, flush=True)
        else:
            os.kill(int(line), signal.SIGKILL)
            print(os.waitpid(int(line), 0)[1], flush=True)


main()
