"""SHA-256 that is counted beside the reading."""

import hashlib

from hypothesis import given, settings
from hypothesis import strategies as st

from model_sync import digests
from model_sync.digests import Digest
from model_sync.store import CHUNK_BYTES


@settings(deadline=None)
@given(sizes=st.lists(st.sampled_from([0, 1, 100, 65_536, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1]), max_size=8), asked=st.booleans())
def test_it_is_that_of_all_blocks_whatever_their_sizes_and_whenever_it_is_asked(sizes: list[int], asked: bool) -> None:
    digest, whole = Digest(), hashlib.sha256()
    for number, size in enumerate(sizes):
        block = bytes([number]) * size
        digest.update(block)
        whole.update(block)
        if asked:
            assert str(digest) == f"sha256:{whole.hexdigest()}"
    assert str(digest) == f"sha256:{whole.hexdigest()}"


def test_single_bytes_are_not_held_for_long() -> None:
    digest = Digest()
    for _ in range(10 * digests._BLOCKS):
        digest.update(b"x")
        assert len(digest._gathered) < digests._BLOCKS
    assert str(digest) == f"sha256:{hashlib.sha256(10 * digests._BLOCKS * b'x').hexdigest()}"


def test_two_at_once_do_not_mix() -> None:
    digests_ = [Digest(), Digest()]
    for _ in range(5):
        for number, digest in enumerate(digests_):
            digest.update(bytes([number]) * CHUNK_BYTES)
    assert [str(digest) for digest in digests_] == [f"sha256:{hashlib.sha256(bytes([n]) * 5 * CHUNK_BYTES).hexdigest()}" for n in (0, 1)]
