"""Whether a GGUF file is a model of embeddings: the one thing that the engine must know before it loads it.

Source: the GGUF specification (ggml, docs/gguf.md). Whoever published the file has checked its head (model_sync/header.py).
"""

import struct
from pathlib import Path
from typing import BinaryIO

_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value by its type."""
_UINT32, _STRING, _ARRAY = 4, 8, 9


def pools(path: Path) -> bool:
    """Whether the model makes one vector, or one score, of a text (`<architecture>.pooling_type` above 0)."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            return False
        _, _, count = struct.unpack("<IQQ", file.read(20))
        for _ in range(count):
            key, kind = _string(file), _number(file, "I")
            if key.endswith(b".pooling_type") and kind == _UINT32:
                return _number(file, "I") > 0
            _skip(file, kind)
    return False


def _number(file: BinaryIO, code: str) -> int:
    return int(struct.unpack(f"<{code}", file.read(struct.calcsize(f"<{code}")))[0])


def _string(file: BinaryIO) -> bytes:
    return file.read(_number(file, "Q"))


def _skip(file: BinaryIO, kind: int) -> None:
    if kind == _STRING:
        file.seek(_number(file, "Q"), 1)
    elif kind != _ARRAY:
        file.seek(_WIDTHS[kind], 1)
    else:
        inner, count = _number(file, "I"), _number(file, "Q")
        if inner in _WIDTHS:
            file.seek(count * _WIDTHS[inner], 1)
            return
        for _ in range(count):
            _skip(file, inner)
