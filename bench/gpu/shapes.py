"""GGUF files with the shape of a real model and random weights: as large and as fast as the real one, whatever it says."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
from numpy.typing import NDArray

from tests.tiny_gguf import CHATML, byte_alphabet

_VOCABULARY = 151_936
_SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
_Q4_K, _Q6_K = GGMLQuantizationType.Q4_K, GGMLQuantizationType.Q6_K
_BLOCK = 256
"""Weights of one block of either format. Source: llama.cpp, ggml/src/ggml-common.h."""


@dataclass(frozen=True)
class Shape:
    """Source of the two below: config.json of Qwen/Qwen3-Coder-30B-A3B-Instruct and Qwen/Qwen3-8B."""

    architecture: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head: int
    feed_forward: int
    experts: int = 0
    used: int = 0

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head * 2


CODER_30B = Shape("qwen3moe", 48, 2048, 32, 4, 128, 768, experts=128, used=8)
DENSE_8B = Shape("qwen3", 36, 4096, 32, 8, 128, 12288)


def make(path: Path, shape: Shape) -> Path:
    """The model as llama.cpp's recipe Q4_K_M mixes its formats. One token a byte: so many characters are so many tokens."""
    writer = GGUFWriter(path, shape.architecture)
    _declare(writer, shape)
    made: dict[tuple[tuple[int, ...], GGMLQuantizationType], NDArray[np.uint8]] = {}
    for name, dimensions, kind in _matrices(shape):
        # One block of random weights serves all tensors of its form: what they hold does not matter.
        if (dimensions, kind) not in made:
            made[dimensions, kind] = _random(dimensions, kind)
        tensor = made[dimensions, kind]
        if name == "output.weight":
            # No single byte, which may be no text, and no end: every answer is as long as was asked.
            tensor[: len(byte_alphabet()) + len(_SPECIAL)] = 0
        writer.add_tensor(name, tensor, raw_dtype=kind)
    for name, size in _norms(shape).items():
        writer.add_tensor(name, np.ones(size, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _declare(writer: GGUFWriter, shape: Shape) -> None:
    writer.add_name("random")
    writer.add_file_type(LlamaFileType.MOSTLY_Q4_K_M)
    writer.add_context_length(262_144)
    writer.add_block_count(shape.layers)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head)
    writer.add_value_length(shape.head)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e7)
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(shape.used)
        writer.add_expert_feed_forward_length(shape.feed_forward)
    tokens = [*byte_alphabet().values(), *_SPECIAL]
    tokens += [f"[{number}]" for number in range(_VOCABULARY - len(tokens))]
    kinds = [TokenType.CONTROL if token in _SPECIAL else TokenType.NORMAL for token in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    # Of two bytes that no text has: a list must not be empty.
    writer.add_token_merges([" ".join(tokens[:2])])
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHATML)


def _matrices(shape: Shape) -> Iterator[tuple[str, tuple[int, ...], GGMLQuantizationType]]:
    """Name, rows and columns, format."""
    width, queries, keys = shape.width, shape.heads * shape.head, shape.kv_heads * shape.head
    yield "token_embd.weight", (_VOCABULARY, width), _Q4_K
    yield "output.weight", (_VOCABULARY, width), _Q6_K
    eighth = shape.layers // 8
    for layer in range(shape.layers):
        # Source: llama.cpp, src/llama-quant.cpp, use_more_bits.
        better = _Q6_K if layer < eighth or layer >= 7 * eighth or (layer - eighth) % 3 == 2 else _Q4_K
        of = f"blk.{layer}"
        yield f"{of}.attn_q.weight", (queries, width), _Q4_K
        yield f"{of}.attn_k.weight", (keys, width), _Q4_K
        yield f"{of}.attn_v.weight", (keys, width), better
        yield f"{of}.attn_output.weight", (width, queries), _Q4_K
        experts, suffix = ((shape.experts,), "_exps") if shape.experts else ((), "")
        if shape.experts:
            yield f"{of}.ffn_gate_inp.weight", (shape.experts, width), GGMLQuantizationType.F32
        yield f"{of}.ffn_gate{suffix}.weight", (*experts, shape.feed_forward, width), _Q4_K
        yield f"{of}.ffn_up{suffix}.weight", (*experts, shape.feed_forward, width), _Q4_K
        yield f"{of}.ffn_down{suffix}.weight", (*experts, width, shape.feed_forward), better


def _norms(shape: Shape) -> Mapping[str, int]:
    sizes = {"output_norm.weight": shape.width}
    for layer in range(shape.layers):
        sizes |= {f"blk.{layer}.{name}.weight": shape.width for name in ("attn_norm", "ffn_norm")}
        sizes |= {f"blk.{layer}.{name}.weight": shape.head for name in ("attn_q_norm", "attn_k_norm")}
    return sizes


def _random(dimensions: tuple[int, ...], kind: GGMLQuantizationType) -> NDArray[np.uint8]:
    """Bytes of that many weights about as large as a trained model's. Source of the layouts: llama.cpp, ggml/src/ggml-common.h."""
    random = np.random.default_rng(0)
    *rows, columns = dimensions
    if kind is GGMLQuantizationType.F32:
        return random.normal(0, 0.02, dimensions).astype(np.float32)  # pyright: ignore[reportReturnType] (a tensor of floats)
    size = 144 if kind is _Q4_K else 210
    few = random.integers(0, 256, (4096, size), np.uint8)
    if kind is _Q4_K:  # Scale and minimum first: 0.00014 x 32 x (0 to 15), less as much in the middle.
        few[:, :4] = np.array([1.4e-4, 1.05e-3], np.float16).view(np.uint8)
    else:  # Scale last, of -32 to 31 times -128 to 127.
        few[:, -2:] = np.array([1.5e-5], np.float16).view(np.uint8)
    blocks = int(np.prod(rows)) * columns // _BLOCK
    return np.resize(few, (blocks, size)).reshape(*rows, columns // _BLOCK * size)
