"""Model files are a stranger's bytes: whatever they say, reading them ends soon, in little memory, with facts or one line."""

import resource
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_server import pooling
from model_sync import gguf, header, templates
from model_sync.store import StoreError
from tests import tiny_gguf

EVERY_CHECK: Any = tuple(HealthCheck)
"""An enum by metaclass, which type checkers do not see."""
ROOT = Path(__file__).resolve().parents[2]


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def file(*keys: tuple[bytes, int, bytes], tensors: bytes = b"", count: int = 0, rest: bytes = b"") -> bytes:
    """A GGUF file of these keys (name, type, content) and tensors."""
    pairs = b"".join(text(name) + struct.pack("<I", kind) + content for name, kind, content in keys)
    return b"GGUF" + struct.pack("<IQQ", 3, count, len(keys)) + pairs + tensors + rest


def tensor(name: bytes = b"t", dimensions: tuple[int, ...] = (1,), offset: int = 0) -> bytes:
    shape = struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
    return text(name) + shape + struct.pack("<IQ", 0, offset)


HUGE = struct.pack("<Q", 2**63)
LARGE = struct.pack("<Q", 2**40)
U32, STRING, ARRAY = 4, 8, 9


@pytest.fixture
def read(tmp_path: Path) -> Callable[[bytes], dict[str, object]]:
    def write_and_read(content: bytes) -> dict[str, object]:
        path = tmp_path / "m.gguf"
        path.write_bytes(content)
        return gguf.metadata(path)

    return write_and_read


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"GGUF" + struct.pack("<IQ", 3, 0) + HUGE, "got 9223372036854775808 keys, want at most 4096"),
        (b"GGUF" + struct.pack("<I", 3) + HUGE + HUGE, "got 9223372036854775808 tensors, want at most"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + LARGE, "bytes of a key, want at most 256"),
        (file((b"a", STRING, LARGE)), "got 1099511627776 bytes of text, want at most"),
        (file((b"a", STRING, HUGE)), "got 9223372036854775808 bytes of text, want at most"),
        (file((b"a", STRING, struct.pack("<Q", 100) + b"short")), "got the end inside of the metadata"),
        (file((b"a", ARRAY, struct.pack("<I", U32) + HUGE)), "items of an array, want at most"),
        (file((b"a", ARRAY, struct.pack("<IQ", U32, 1000))), "got the end inside of the metadata"),
        (file((b"a", ARRAY, struct.pack("<IQ", ARRAY, 1) * 1000)), "got an array of value type 9"),
        (file((b"a", ARRAY, struct.pack("<IQ", STRING, 2) + HUGE)), "bytes of text, want at most"),
        (file((b"a", 13, b"")), "got value type 13, want 0..12"),
        (file((b"a", U32, b"\1\0\0\0"), (b"a", U32, b"\2\0\0\0")), "got the key 'a' twice"),
        (file(count=1, tensors=tensor(dimensions=(1,) * 5)), "got 5 dimensions of tensor"),
        (file(count=1, tensors=tensor(dimensions=(2**40, 2**40))), "elements or more of tensor"),
        (file(count=1, tensors=tensor(offset=2**40)), "got a tensor at 1099511627776, want one in the"),
        (file(count=1, tensors=tensor(offset=1), rest=bytes(100)), "got a tensor at 1, want one in the"),
        (file(count=1, tensors=tensor(name=b"n" * 300)), "bytes of a tensor's name"),
        (file((b"general.alignment", U32, b"\3\0\0\0")), "got alignment 3, want a power of two"),
        (file((b"general.alignment", STRING, text(b"x"))), "got alignment 'x', want a power of two"),
    ],
)
def test_a_count_length_or_offset_beyond_its_limit_is_named(read: Callable[[bytes], object], content: bytes, says: str) -> None:
    with pytest.raises(StoreError, match=r"m\.gguf: got") as caught:
        read(content)
    assert says in str(caught.value)


@given(lengths=st.lists(st.one_of(st.integers(0, 40), st.integers(65_500, 65_560), st.just(header.TEXT_BYTES)), max_size=6))
@settings(max_examples=200, deadline=2000, suppress_health_check=EVERY_CHECK)
def test_texts_that_end_anywhere_in_a_block_are_passed_by(lengths: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    """The first two leave four bytes of a block, so that the length of the third lies across its end."""
    lengths = [65_500, 16, *lengths]
    texts = b"".join(text(b"\xff" * length) for length in lengths)
    path = tmp_path_factory.getbasetemp() / "texts.gguf"
    path.write_bytes(file((b"a", ARRAY, struct.pack("<IQ", STRING, len(lengths)) + texts), (b"b", U32, struct.pack("<I", 7))))
    assert gguf.metadata(path) == {"b": 7}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return tiny_gguf.make(tmp_path_factory.mktemp("gguf") / "m.gguf", "Hello.").read_bytes()


def mutations(size: int) -> st.SearchStrategy[list[tuple[int, bytes]]]:
    """Bytes at places, most of them in the head, where everything is read; wide numbers among them."""
    values = st.one_of(st.binary(min_size=1, max_size=9), st.sampled_from([HUGE, LARGE, b"\xff" * 8, b"\xff" * 4, bytes(8)]))
    places = st.one_of(st.integers(0, 400), st.integers(0, min(size, 20_000)))
    return st.lists(st.tuples(places, values), min_size=1, max_size=6)


@given(data=st.data())
@settings(max_examples=1000, deadline=2000, suppress_health_check=EVERY_CHECK)
def test_a_mutated_file_is_read_or_refused(data: st.DataObject, whole: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    """1,000 of them; as long as none takes two seconds, or raises anything but a line."""
    content = bytearray(whole[: data.draw(st.one_of(st.just(len(whole)), st.integers(0, 30_000)))])
    for place, value in data.draw(mutations(len(content))):
        content[place : place + len(value)] = value
    path = tmp_path_factory.getbasetemp() / "mutated.gguf"
    path.write_bytes(content)
    assert pooling.pooling(path) >= 0, "read by the model server too, or left to its engine"
    try:
        facts = gguf.metadata(path)
        gguf.require_model(path, facts)
        assert isinstance(gguf.quantization(facts), str)
        gguf.manifest(gguf.Blob("sha256:" + "0" * 64, len(content)), facts, tmp_path_factory.getbasetemp() / "fuzzed")
    except StoreError as error:
        assert "\n" not in str(error)
        assert ": got " in str(error)


@given(content=st.binary(max_size=2000))
@settings(max_examples=1000, deadline=2000, suppress_health_check=EVERY_CHECK)
def test_any_bytes_are_read_or_refused(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.gguf"
    path.write_bytes(b"GGUF\3\0\0\0" + content)
    try:
        gguf.metadata(path)
    except StoreError as error:
        assert ": got " in str(error)


def test_the_dearest_head_costs_seconds_and_little_memory(tmp_path: Path) -> None:
    """An array of empty texts, as many as are taken, in a file that claims to be larger than any limit."""
    path = tmp_path / "m.gguf"
    with path.open("wb") as handle:
        handle.write(file((b"a", ARRAY, struct.pack("<IQ", STRING, header.ITEMS) + bytes(8 * header.ITEMS))))
        handle.truncate(1 << 40)
    script = "import sys, pathlib; from model_sync import gguf; gguf.metadata(pathlib.Path(sys.argv[1]))"
    started = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(["prlimit", "--data=67108864", sys.executable, "-c", script, str(path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 30, time.monotonic() - started


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"split.count": 3}, "got one of 3 parts, want a model in one file; name a source that lists all of them"),
        ({"general.architecture": "clip"}, "got a projector for images, want a language model"),
        ({"general.type": "adapter"}, "got an adapter, want a language model"),
        ({"general.type": 5}, "got a GGUF of type '5', want a language model"),
        ({"tokenizer.chat_template": "{% include '/etc/passwd' %}"}, "got a chat template with include"),
        ({"tokenizer.chat_template.tools": "{{ x.__class__ }}"}, "got a chat template with __class__"),
    ],
)
def test_what_is_no_model_of_one_file_is_refused_by_name(facts: dict[str, object], says: str) -> None:
    with pytest.raises(StoreError) as caught:
        gguf.require_model(Path("m.gguf"), facts)
    assert str(caught.value).startswith("m.gguf: ")
    assert says in str(caught.value)


@pytest.mark.parametrize("facts", [{"general.file_type": value} for value in ("x", None, float("inf"), True, -1, 2**63)])
def test_a_file_type_that_is_none_is_unknown(facts: dict[str, object]) -> None:
    assert gguf.quantization(facts) == "unknown"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{%- include 'x' -%}", "with include"),
        ("{% import 'x' as y %}", "with import"),
        ("{% from 'x' import y %}", "with from"),
        ("{% extends 'x' %}", "with extends"),
        ("{{ ''.__class__.__mro__ }}", "with __class__"),
        ("{{ x['__globals__'] }}", "with __globals__"),
        ("{{ x|attr('__init__') }}", "with __init__"),
        ("x" * (templates.TEMPLATE_BYTES + 1), f"of {templates.TEMPLATE_BYTES + 1} bytes"),
        ("{% if a %}" * 65 + "{% endif %}" * 65, "that nests 65 deep"),
        ("{{ " + "(" * 100 + "1" + ")" * 100 + " }}", "deep"),
    ],
)
def test_a_template_that_reaches_out_or_nests_without_end_is_refused(template: str, says: str) -> None:
    with pytest.raises(StoreError, match="got a chat template") as caught:
        templates.check(template)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "template",
    [
        tiny_gguf.CHATML,
        "{% for m in messages %}{% set x = m.content %}{% set y %}z{% endset %}{{ '<__media__>' }}{% endfor %}" * 50,
        "{{ '(' }}" * 30,
        "{% if a is defined and (b or (c and d)) %}{% elif x %}{% else %}{% endif %}" * 100,
    ],
)
def test_templates_of_models_pass(template: str) -> None:
    templates.check(template)


GO = (
    "{{- range $i, $_ := .Messages }}{{ range .ToolCalls }}{{ json .Function }}{{ end }}{{ end }}",
    "{{ range slice $.Messages 1 }}{{ end }}{{ with .Tools }}{{ range . }}{{ end }}{{ end }}{{ range $tool.Properties }}{{ end }}",
    "{{ if .System }}{{ .System }}{{ end }}{{ .Prompt }}",
)


@pytest.mark.parametrize("template", GO)
def test_templates_of_ollama_pass(template: str) -> None:
    templates.check_go(template)


@pytest.mark.parametrize("action", ["range 1000000000", "range $n", "- range $i := 9", 'template "x" .', 'block "x" .'])
def test_a_go_template_that_repeats_itself_at_will_is_refused(action: str) -> None:
    with pytest.raises(StoreError, match="got a chat template with"):
        templates.check_go("{{ $n := 100 }}{{" + action + " }}x{{ end }}")
