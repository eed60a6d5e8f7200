"""The head of a GGUF file, read as what it is: a stranger's bytes. Every count, length and offset is checked before it is used.

What is read is bounded by constants, whatever the file says and however large it is. Source of the format: ggml, docs/gguf.md.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from model_sync.store import StoreError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Value types with a fixed width, as struct formats."""
_STRING, _ARRAY = 8, 9
HEAD_BYTES = 128 << 20
"""Metadata and the list of tensors. The largest known, of vocabularies of 262,000 tokens, have 16 MB."""
KEYS, TENSORS, ITEMS = 4096, 65536, 4 << 20
KEY_BYTES, NAME_BYTES, TEXT_BYTES = 256, 256, 1 << 20
"""Of a key, a tensor's name, and a text that is kept. The format allows keys of 65,535 bytes; known ones have 60."""
_DIMENSIONS = 4
_ELEMENTS = 1 << 62
_BLOCK_BYTES = 64 << 10
_LENGTH = struct.Struct("<Q")
_TEXT_ALIGNMENT, _MOST_ALIGNMENT = 32, 1 << 16


@dataclass
class _Reader:
    file: BinaryIO
    name: str
    size: int
    at: int = 0

    def take(self, count: int) -> bytes:
        self.skip(count)
        return self.file.read(count)

    def skip(self, count: int) -> None:
        """Bounds for the bytes that come next; whoever does not read them has to move on."""
        self.at += count
        if self.at > self.size:
            raise self.error("the end inside of the metadata", "all of it; the file is cut off or damaged")
        if self.at > HEAD_BYTES:
            raise self.error(f"more than {HEAD_BYTES} bytes of metadata", "a model's; do not use the file")

    def pass_by(self, count: int) -> None:
        self.skip(count)
        self.file.seek(self.at)

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def count(self, what: str, most: int) -> int:
        found = self.number("Q")
        if found > most:
            raise self.error(f"{found} {what}", f"at most {most}; the file is damaged, do not use it")
        return found

    def text(self, what: str, most: int) -> str:
        return self.take(self.count(f"bytes of {what}", most)).decode(errors="replace")

    def error(self, got: str, want: str) -> StoreError:
        return StoreError(f"{self.name}: got {got}, want {want}")


def read(path: Path) -> dict[str, Any]:
    """The keys of a GGUF file with their values; arrays are looked at, and left out. Raises StoreError when it is none, or no sound one."""
    with path.open("rb") as file:
        reader = _Reader(file, str(path), path.stat().st_size)
        if file.read(4) != b"GGUF":
            raise reader.error("another file type", "GGUF; check the file")
        reader.at = 4
        version = reader.number("I")
        if version not in (2, 3):
            raise reader.error(f"GGUF version {version}", "2 or 3; convert the file")
        tensors, keys = reader.count("tensors", TENSORS), reader.count("keys", KEYS)
        found: dict[str, Any] = {}
        for _ in range(keys):
            key = reader.text("a key", KEY_BYTES)
            if key in found:
                # Two readers would believe two things.
                raise reader.error(f"the key {key!r} twice", "once; the file is damaged, do not use it")
            found[key] = _value(reader, reader.number("I"))
        offsets = [_tensor(reader) for _ in range(tensors)]
        _check_offsets(reader, offsets, found.get("general.alignment", _TEXT_ALIGNMENT))
    return {key: value for key, value in found.items() if value is not None}


def _value(reader: _Reader, kind: int) -> Any:
    if kind in _SCALARS:
        return reader.number(_SCALARS[kind])
    if kind == _STRING:
        return reader.text("text", TEXT_BYTES)
    if kind == _ARRAY:
        return _pass_array(reader)
    raise reader.error(f"value type {kind}", "0..12; the file is damaged")


def _pass_array(reader: _Reader) -> None:
    kind, count = reader.number("I"), reader.count("items of an array", ITEMS)
    if kind in _SCALARS:
        reader.pass_by(count * struct.calcsize(f"<{_SCALARS[kind]}"))
    elif kind == _STRING:
        _pass_texts(reader, count)
    else:
        # No engine reads arrays of arrays.
        raise reader.error(f"an array of value type {kind}", "one of numbers or texts; the file is damaged")


def _pass_texts(reader: _Reader, count: int) -> None:
    """A vocabulary has half a million: the lengths are found in blocks, since a read for each would take a second."""
    block, at = b"", 0
    for _ in range(count):
        if at + _LENGTH.size > len(block):
            reader.pass_by(at)
            block, at = reader.file.read(_BLOCK_BYTES), 0
            if len(block) < _LENGTH.size:
                # The end of the file is before them, which this says.
                reader.skip(_LENGTH.size)
        (length,) = _LENGTH.unpack_from(block, at)
        if length > TEXT_BYTES:
            raise reader.error(f"{length} bytes of text", f"at most {TEXT_BYTES}; the file is damaged, do not use it")
        at += _LENGTH.size + length
    reader.pass_by(at)


def _tensor(reader: _Reader) -> int:
    """The offset of one tensor."""
    name, dimensions = reader.text("a tensor's name", NAME_BYTES), reader.number("I")
    if dimensions > _DIMENSIONS:
        raise reader.error(f"{dimensions} dimensions of tensor {name!r}", f"at most {_DIMENSIONS}; the file is damaged")
    elements = 1
    for _ in range(dimensions):
        elements *= reader.number("Q")
        if elements > _ELEMENTS:
            raise reader.error(f"{elements} elements or more of tensor {name!r}", f"at most {_ELEMENTS}; the file is damaged")
    reader.number("I")
    return reader.number("Q")


def _check_offsets(reader: _Reader, offsets: list[int], alignment: Any) -> None:
    if type(alignment) is not int or not 0 < alignment <= _MOST_ALIGNMENT or alignment & (alignment - 1):
        raise reader.error(f"alignment {alignment!r}", f"a power of two up to {_MOST_ALIGNMENT}; the file is damaged")
    room = reader.size - -(-reader.at // alignment) * alignment
    for offset in offsets:
        if offset % alignment or offset >= room:
            raise reader.error(f"a tensor at {offset}", f"one in the {max(room, 0)} bytes of data; the file is cut off or damaged")
