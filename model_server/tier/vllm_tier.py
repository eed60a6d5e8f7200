"""vLLM's own tier of files, but for its size and its trust: it begins no file that the keeper has not allowed, says when it has used one,
and takes no block whose bytes are not those that were written under that name.

vLLM imports it by name: `secondary_tiers` of its offloading configuration (model_server/vllm.py). What has no room is not written, and what
is damaged is removed: its tokens are read again, as with any block that is not there.
"""

import contextlib
import functools
import hashlib
import os
import queue
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from vllm.v1.kv_offload.tiering.base import TransferJob  # pyright: ignore[reportMissingImports]
from vllm.v1.kv_offload.tiering.fs.io import batch_store_block  # pyright: ignore[reportMissingImports]
from vllm.v1.kv_offload.tiering.fs.manager import FileSystemTierManager  # pyright: ignore[reportMissingImports]

from model_server.tier.agreement import BLOCKS, Writer

_SUM = "user.modelfleet.sha256"
"""Extended attribute of a block's file. The disk must have them: ext4, XFS, Btrfs, and NFS from 4.2 on do."""


class BoundedFileTier(FileSystemTierManager):  # pyright: ignore[reportUntypedBaseClass]
    """`root_dir`: the tier's directory, which a keeper bounds. The other arguments are those of vLLM's tier."""

    def __init__(self, *args: Any, root_dir: str, **kwargs: Any) -> None:
        super().__init__(*args, root_dir=f"{root_dir}/{BLOCKS}", **kwargs)
        self._writer = Writer(Path(root_dir), Path(self.file_mapper.base_path).name)
        enqueue = self._pool.enqueue_load
        # What the pool runs for a job of loading is vLLM's own; the bytes are looked at in the same thread, before the job ends.
        self._pool.enqueue_load = lambda job, count, tasks: enqueue(
            job, count, [functools.partial(self._load, job, task) for task in tasks]
        )
        self._loading: dict[int, list[tuple[str, int]]] = {}
        self._used: queue.SimpleQueue[list[str] | None] = queue.SimpleQueue()
        threading.Thread(target=self._note_uses, name="tier-uses", daemon=True).start()

    def submit_store(self, job_metadata: TransferJob) -> None:
        pairs = zip(job_metadata.keys, job_metadata.chunk_ids, strict=True)
        begun = [(self.file_mapper.get_file_name(key), int(chunk)) for key, chunk in pairs if self._writer.may_begin(self._block_size)]
        self._job_block_counts[job_metadata.job_id] = len(begun)
        if self.events is not None:
            # Nobody is told of a block that may not be there.
            self._store_job_keys[job_metadata.job_id] = list(job_metadata.keys) if len(begun) == len(job_metadata.keys) else []
        self._pool.enqueue_store(job_metadata.job_id, 1, [functools.partial(self._store, begun)])

    def _store(self, begun: list[tuple[str, int]]) -> None:
        """In a thread of the pool."""
        size = self._block_size
        try:
            if begun:
                names, places = [name for name, _ in begun], [chunk * size for _, chunk in begun]
                write = functools.partial(batch_store_block, names, self._primary_kv_view, places, size, self._use_o_direct)
                try:
                    write()
                except FileNotFoundError:
                    # The keeper took an empty directory before its first file came. What is written already is left alone.
                    write()
                for name, chunk in begun:
                    # Another engine's block of that name may have been old, and gone since.
                    with contextlib.suppress(FileNotFoundError):
                        os.setxattr(name, _SUM, self._sum(name, chunk))
        finally:
            for _ in begun:
                self._writer.end(size)

    def submit_load(self, job_metadata: TransferJob) -> None:
        pairs = zip(job_metadata.keys, job_metadata.chunk_ids, strict=True)
        self._loading[job_metadata.job_id] = [(self.file_mapper.get_file_name(key), int(chunk)) for key, chunk in pairs]
        super().submit_load(job_metadata)

    def _load(self, job_id: int, task: Callable[[], None]) -> None:
        """In a thread of the pool. Raises OSError at the first block that is not as it was written; those before it are used."""
        begun = self._loading.pop(job_id)
        try:
            task()
        finally:
            # vLLM notes how far it came when it fails.
            loaded = self._load_progress.get(job_id, len(begun))
            for number, (name, chunk) in enumerate(begun[:loaded]):
                if not self._is_as_written(name, chunk):
                    self._load_progress[job_id] = number
                    raise OSError(f"{name}: got other bytes than were written, want the same; removed")

    def _is_as_written(self, name: str, chunk: int) -> bool:
        try:
            if os.getxattr(name, _SUM) == self._sum(name, chunk):
                return True
        except OSError:
            # Its writer was killed between the two, or the keeper took it meanwhile.
            pass
        Path(name).unlink(missing_ok=True)
        return False

    def _sum(self, name: str, chunk: int) -> bytes:
        """Over the name too, which is the hash of all tokens up to here: a block is good under no other one."""
        size = self._block_size
        found = hashlib.sha256(Path(name).name.encode())
        found.update(self._primary_kv_view.cast("B")[chunk * size : (chunk + 1) * size])
        return found.digest()

    def touch(self, keys: Collection[Any], req_context: Any) -> None:
        """Blocks of a request that goes on. Many disks are mounted so that reading a file leaves its time of access alone."""
        self._used.put([self.file_mapper.get_file_name(key) for key in keys])

    def _note_uses(self) -> None:
        while (names := self._used.get()) is not None:
            for name in names:
                try:
                    # By the clock of the file system. It is young again, too.
                    os.utime(name)
                except OSError:
                    continue

    def shutdown(self) -> None:
        super().shutdown()
        self._used.put(None)
        self._writer.close()
