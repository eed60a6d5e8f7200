"""vLLM's own tier of files, but for its size: it begins no file that the keeper has not allowed, and says when it has read one.

vLLM imports it by name: `secondary_tiers` of its offloading configuration (model_server/vllm.py). What has no room is not written: its
tokens are read again, as with any block that is not there.
"""

import functools
import os
import queue
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any

from vllm.v1.kv_offload.tiering.base import TransferJob  # pyright: ignore[reportMissingImports]
from vllm.v1.kv_offload.tiering.fs.io import batch_store_block  # pyright: ignore[reportMissingImports]
from vllm.v1.kv_offload.tiering.fs.manager import FileSystemTierManager  # pyright: ignore[reportMissingImports]

from model_server.tier.agreement import BLOCKS, Writer


class BoundedFileTier(FileSystemTierManager):  # pyright: ignore[reportUntypedBaseClass]
    """`root_dir`: the tier's directory, which a keeper bounds. The other arguments are those of vLLM's tier."""

    def __init__(self, *args: Any, root_dir: str, **kwargs: Any) -> None:
        super().__init__(*args, root_dir=f"{root_dir}/{BLOCKS}", **kwargs)
        self._writer = Writer(Path(root_dir), Path(self.file_mapper.base_path).name)
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
                places = [chunk * size for _, chunk in begun]
                batch_store_block([name for name, _ in begun], self._primary_kv_view, places, size, self._use_o_direct)
        finally:
            for _ in begun:
                self._writer.end(size)

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
