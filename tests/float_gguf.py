"""A tree of safetensors as a GGUF file in F32: the same weights, to the bit, for an engine that reads no trees. Of a Llama alone."""

import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Source: gguf-py, gguf/tensor_mapping.py."""
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_OF_THE_FILE = ("GGUF.", "general.file_type", "general.quantization_version", "general.architecture", "general.alignment")
"""Keys that the writer sets by itself."""


def make(tree: Path, packed: Path, out: Path) -> Path:
    """Write the weights of `tree`; what else a GGUF file says of its model is taken from `packed`, of which the tree was made."""
    reader = GGUFReader(packed)
    writer = GGUFWriter(str(out), "llama")
    writer.add_file_type(LlamaFileType.ALL_F32)
    for field in reader.fields.values():
        if not field.name.startswith(_OF_THE_FILE):
            kind = field.types[0]
            writer.add_key_value(field.name, field.contents(), kind, field.types[-1] if kind == GGUFValueType.ARRAY else None)
    heads = {
        "attn_q": int(reader.fields["llama.attention.head_count"].contents()),
        "attn_k": int(reader.fields["llama.attention.head_count_kv"].contents()),
    }
    wanted = {tensor.name for tensor in reader.tensors}
    for name, weight in _weights(tree / "model.safetensors"):
        found = _LAYER.fullmatch(name)
        part = _NAMES[(found[2] if found else name).removesuffix(".weight")]
        target = f"blk.{found[1]}.{part}.weight" if found else f"{part}.weight"
        if target in wanted:
            # Where the output has the rows of the input, the file has them once.
            writer.add_tensor(target, _halves_mixed(weight, heads[part]) if part in heads else weight)
            wanted.remove(target)
    if wanted:
        raise ValueError(f"{tree}: got no {sorted(wanted)[0]}, want every tensor of {packed}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def _weights(path: Path) -> "list[tuple[str, np.ndarray[Any, Any]]]":
    """Of a safetensors file in bfloat16, as float32."""
    content = np.memmap(path, np.uint8, "r")
    (length,) = struct.unpack("<Q", bytes(content[:8]))
    head: dict[str, Any] = json.loads(bytes(content[8 : 8 + length]))
    found: list[tuple[str, np.ndarray[Any, Any]]] = []
    for name, tensor in head.items():
        if name != "__metadata__":
            begin, end = (8 + length + offset for offset in tensor["data_offsets"])
            # A bfloat16 is the upper half of a float32.
            whole = np.frombuffer(bytes(content[begin:end]), np.uint16).astype(np.uint32) << 16
            found.append((name, whole.view(np.float32).reshape(tensor["shape"])))
    return found


def _halves_mixed(weight: "np.ndarray[Any, Any]", heads: int) -> "np.ndarray[Any, Any]":
    """The rows of each head as llama.cpp rotates them: neighbours, where transformers has the halves. Source: llama.cpp,
    conversion of Llama (permute)."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
