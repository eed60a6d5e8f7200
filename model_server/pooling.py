"""How a GGUF file's model pools: the one thing that must be said to the engine before it loads the file.

Source: the GGUF specification (ggml, docs/gguf.md). Whoever published the file has checked its head (model_sync/header.py).
"""

import struct
from pathlib import Path
from typing import BinaryIO

RANK = 4
"""A score for each text, instead of a vector. Source: llama.cpp, include/llama.h, enum llama_pooling_type."""
_KEY_BYTES = 65_535
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value by its type."""
_UINT32, _STRING, _ARRAY = 4, 8, 9


def pooling(path: Path) -> int:
    """`<architecture>.pooling_type`; 0 for a model that writes text, and where the head cannot be read: the engine then says why."""
    try:
        with path.open("rb") as file:
            return _find(file)
    except (struct.error, KeyError, ValueError, OverflowError, OSError):
        return 0


def _find(file: BinaryIO) -> int:
    if file.read(4) != b"GGUF":
        return 0
    _, _, count = struct.unpack("<IQQ", file.read(20))
    for _ in range(count):
        size = _number(file, "Q")
        if size > _KEY_BYTES:
            return 0
        key, kind = file.read(size), _number(file, "I")
        if key.endswith(b".pooling_type") and kind == _UINT32:
            return _number(file, "I")
        _skip(file, kind)
    return 0


def _number(file: BinaryIO, code: str) -> int:
    return int(struct.unpack(f"<{code}", file.read(struct.calcsize(f"<{code}")))[0])


def _skip(file: BinaryIO, kind: int) -> None:
    """Raises KeyError at a type that is not known, and at an array of arrays, which no model has."""
    if kind == _STRING:
        file.seek(_number(file, "Q"), 1)
    elif kind != _ARRAY:
        file.seek(_WIDTHS[kind], 1)
    else:
        inner, count = _number(file, "I"), _number(file, "Q")
        if inner != _STRING:
            file.seek(count * _WIDTHS[inner], 1)
            return
        for _ in range(count):
            _skip(file, inner)
