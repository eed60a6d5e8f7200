"""Tiny, valid llama-architecture GGUF files whose output is known in advance.

The weights are not random: every token has a one-hot embedding, the attention and feed-forward blocks add nothing to the
residual stream, and the output matrix maps each token to exactly one successor. Greedy or sampled, the model always says
its script and then stops (or starts over), so a test can assert on exact text while a real engine does real work.
"""

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter, LlamaFileType, PoolingType, TokenType

CHATML = (
    "{%- if tools %}<|im_start|>system\n"
    "{%- if messages[0].role == 'system' %}{{ messages[0].content }}\n{% endif %}"
    "# Tools\n<tools>{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n</tools>\n"
    'For a call answer <tool_call>\n{"name": <name>, "arguments": <object>}\n</tool_call><|im_end|>\n'
    "{% endif %}"
    "{%- for m in messages %}"
    "{%- if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response><|im_end|>\n"
    "{%- elif m.role == 'assistant' and m.tool_calls %}<|im_start|>assistant\n{{ m.content or '' }}"
    '{%- for c in m.tool_calls %}<tool_call>\n{"name": "{{ c.function.name }}", '
    '"arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}<|im_end|>\n'
    "{%- elif not (tools and loop.first and m.role == 'system') %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_alphabet() -> dict[int, str]:
    """The byte -> printable character table that byte-level BPE vocabularies use."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table: dict[int, str] = {}
    extra = 0
    for b in range(256):
        if b in keep:
            table[b] = chr(b)
        else:
            table[b] = chr(256 + extra)
            extra += 1
    return table


def chunks(text: str, taken: set[str]) -> list[str]:
    """Cut text into pieces that are all different from each other and from taken."""
    out: list[str] = []
    seen, i = set(taken), 0
    while i < len(text):
        j = i + 1
        while j < len(text) and (text[j] != " " or text[i:j] in seen):
            j += 1
        if text[i:j] in seen:  # the tail repeats something: join it to the last piece
            if not out:
                raise ValueError("the script must not be a single known token")
            last = out.pop()
            seen.discard(last)
            piece = last + text[i:j]
        else:
            piece = text[i:j]
        seen.add(piece)
        out.append(piece)
        i = j
    return out


_SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
_HEAD = 64
"""Width of an attention head."""
_LOGIT = 30.0
"""Of the one token that follows, against 0 of all others."""


def _encoded(text: str) -> str:
    alpha = byte_alphabet()
    return "".join(alpha[byte] for byte in text.encode())


class _Writer:
    """What both kinds of model have in common: a byte-level vocabulary, one row of width `d` for each token, and the file's header."""

    def __init__(self, out: Path, name: str, own: list[str], own_type: TokenType, *, spare: int = 0, part_tensors: int = 0) -> None:
        """`own`: the tokens after the common ones. `spare`: channels beside one for each token. `part_tensors`: most of them in one file."""
        alpha = byte_alphabet()
        # One merge, because a byte-level BPE vocabulary must have a merge list.
        self.tokens = [*(alpha[byte] for byte in range(256)), *_SPECIAL, _encoded("\n\n"), *own]
        self.first = len(self.tokens) - len(own)
        self.end = self.tokens.index("<|im_end|>")
        self.d = -(-(len(self.tokens) + spare) // _HEAD) * _HEAD
        kinds = [TokenType.CONTROL if token in _SPECIAL else TokenType.NORMAL for token in self.tokens[: self.first]]
        self.gguf = GGUFWriter(str(out), "llama", split_max_tensors=part_tensors)
        self.gguf.add_name(name)
        self.gguf.add_file_type(LlamaFileType.MOSTLY_F16)
        self.gguf.add_embedding_length(self.d)
        self.gguf.add_head_count(self.d // _HEAD)
        self.gguf.add_layer_norm_rms_eps(1e-6)
        self.gguf.add_rope_dimension_count(_HEAD)
        self.gguf.add_rope_freq_base(10000.0)
        self.gguf.add_vocab_size(len(self.tokens))
        self.gguf.add_tokenizer_model("gpt2")
        self.gguf.add_tokenizer_pre("gpt-2")
        self.gguf.add_token_list(self.tokens)
        self.gguf.add_token_types([*kinds, *[own_type] * len(own)])
        self.gguf.add_token_merges([_encoded("\n") + " " + _encoded("\n")])
        self.gguf.add_bos_token_id(self.tokens.index("<|endoftext|>"))
        self.gguf.add_eos_token_id(self.end)
        self.gguf.add_pad_token_id(self.tokens.index("<|endoftext|>"))
        self.gguf.add_add_bos_token(False)

    def sizes(self, *, context: int, layers: int, ff: int, kv_heads: int, template: str) -> None:
        self.gguf.add_context_length(context)
        self.gguf.add_block_count(layers)
        self.gguf.add_feed_forward_length(ff)
        self.gguf.add_head_count_kv(kv_heads)
        self.gguf.add_chat_template(template)

    def ends(self, output: "np.ndarray[Any, Any]") -> None:
        """The first and the last tensors: a one-hot row for each token, and what makes logits of a normalised row."""
        embedding = np.zeros((len(self.tokens), self.d), np.float16)
        np.fill_diagonal(embedding, 1)
        self.gguf.add_tensor("token_embd.weight", embedding)
        self.gguf.add_tensor("output_norm.weight", np.ones(self.d, np.float32))
        self.gguf.add_tensor("output.weight", output.astype(np.float16))

    def block(self, number: int, ff: int, **attention: "np.ndarray[Any, Any]") -> None:
        """A block whose feed-forward half adds nothing."""
        name = f"blk.{number}."
        rng = np.random.default_rng(number)
        for norm in ("attn_norm", "ffn_norm"):
            self.gguf.add_tensor(f"{name}{norm}.weight", np.ones(self.d, np.float32))
        for part, weight in attention.items():
            self.gguf.add_tensor(f"{name}attn_{part}.weight", weight.astype(np.float16))
        for part in ("ffn_gate", "ffn_up"):
            self.gguf.add_tensor(f"{name}{part}.weight", (rng.standard_normal((ff, self.d)) * 0.02).astype(np.float16))
        self.gguf.add_tensor(f"{name}ffn_down.weight", np.zeros((self.d, ff), np.float16))

    def close(self) -> None:
        self.gguf.write_header_to_file()
        self.gguf.write_kv_data_to_file()
        self.gguf.write_tensors_to_file()
        self.gguf.close()


def make(
    out: Path,
    say: str,
    *,
    loop: bool = False,
    layers: int = 1,
    ff: int = 64,
    context: int = 8192,
    pooling: PoolingType | None = None,
    template: str = CHATML,
    part_tensors: int = 0,
) -> Path:
    """Write a model that says `say`, and return its path. `layers` and `ff` (feed-forward width) set what a token costs.
    `pooling`: it makes vectors or scores of a text, and both engines take it for such a model."""
    pieces = [_encoded(piece) for piece in chunks(say, {chr(byte) for byte in range(128)} | {"\n\n"})]
    model = _Writer(out, "tiny-scripted", pieces, TokenType.NORMAL, part_tensors=part_tensors)
    model.sizes(context=context, layers=layers, ff=ff, kv_heads=1, template=template)
    if pooling is not None:
        model.gguf.add_pooling_type(pooling)
    count, d = len(model.tokens), model.d
    successor = dict.fromkeys(range(count), model.first)  # any prompt leads to the start of the script
    successor |= {token: token + 1 for token in range(model.first, count - 1)}
    successor[count - 1] = model.first if loop else model.end
    output = np.zeros((count, d))
    for token, following in successor.items():
        output[following, token] = _LOGIT / np.sqrt(d)  # RMS norm scales a one-hot row to sqrt(d)
    model.ends(output)
    rng = np.random.default_rng(0)
    for number in range(layers):
        q, k, v = (rng.standard_normal((width, d)) * 0.02 for width in (d, _HEAD, _HEAD))
        model.block(number, ff, q=q, k=k, v=v, output=np.zeros((d, d)))
    model.close()
    return out


def make_split(stem: Path, say: str, *, part_tensors: int = 6) -> list[Path]:
    """The same in parts with at most so many tensors, `STEM-00001-of-…`, and their paths in order."""
    make(stem, say, part_tensors=part_tensors)
    return sorted(stem.parent.glob(f"{stem.name}-*-of-*.gguf"))


def make_recalling(out: Path, markers: list[str], *, context: int = 8192) -> Path:
    """Write a model that says the marker that stands in its conversation, and return its path. A marker is one token.

    It finds the marker by attention alone: queries and keys are zero, so every cell of the conversation's cache weighs the same, and
    the value of a marker's cell goes to a channel of its own. A marker of another conversation whose cells are attended to gets a
    logit above 0, in the proportion of its cells, and so is seen among the log probabilities even when the answer is right.
    """
    model = _Writer(out, "tiny-recalling", markers, TokenType.USER_DEFINED, spare=len(markers))
    model.sizes(context=context, layers=1, ff=_HEAD, kv_heads=model.d // _HEAD, template=CHATML)
    count, d = len(model.tokens), model.d
    values, remembered, output = np.zeros((d, d)), np.zeros((d, d)), np.zeros((count, d))
    for marker in range(model.first, count):
        channel = marker + len(markers)
        values[channel, marker] = 1
        remembered[channel, channel] = 1
        # So small that a second marker's probability is not rounded to 0 beside the first one's.
        output[marker, channel] = 4
        # After the marker, the end: against all that is remembered.
        output[model.end, marker] = 1000
    model.ends(output)
    zero = np.zeros((d, d))
    model.block(0, _HEAD, q=zero, k=zero, v=values, output=remembered)
    model.close()
    return out
