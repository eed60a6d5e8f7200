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


def make(  # noqa: PLR0915 (one file, written from top to bottom)
    out: Path,
    say: str,
    *,
    loop: bool = False,
    layers: int = 1,
    ff: int = 64,
    context: int = 8192,
    embeds: bool = False,
    template: str = CHATML,
) -> Path:
    """Write the file and return its path. `layers` and `ff` (feed-forward width) set what a token costs.
    `embeds`: Ollama takes it for a model of embeddings."""
    alpha = byte_alphabet()

    def enc(text: str) -> str:
        return "".join(alpha[byte] for byte in text.encode())

    tokens = [alpha[b] for b in range(256)]
    types = [TokenType.NORMAL] * 256
    for t in ("<|im_start|>", "<|im_end|>", "<|endoftext|>"):
        tokens.append(t)
        types.append(TokenType.CONTROL)
    bos, eos = tokens.index("<|endoftext|>"), tokens.index("<|im_end|>")

    # one merge, because a byte-level BPE vocabulary must have a merge list
    tokens.append(enc("\n\n"))
    types.append(TokenType.NORMAL)
    merges = [enc("\n") + " " + enc("\n")]

    pieces = [enc(p) for p in chunks(say, {chr(b) for b in range(128)} | {"\n\n"})]
    first = len(tokens)
    tokens += pieces
    types += [TokenType.NORMAL] * len(pieces)
    n = len(tokens)

    successor = dict.fromkeys(range(n), first)  # any prompt leads to the start of the script
    for k in range(first, n - 1):
        successor[k] = k + 1
    successor[n - 1] = first if loop else eos

    head = 64
    d = -(-n // head) * head
    heads = d // head
    rng = np.random.default_rng(0)

    def f16(*shape: int) -> Any:
        return (rng.standard_normal(shape) * 0.02).astype(np.float16)

    embd = np.zeros((n, d), np.float16)
    embd[np.arange(n), np.arange(n)] = 1
    outp = np.zeros((n, d), np.float32)
    for i, j in successor.items():
        outp[j, i] = 30.0 / np.sqrt(d)  # RMS norm scales a one-hot row to sqrt(d): logit 30 against 0

    w = GGUFWriter(str(out), "llama")
    w.add_name("tiny-scripted")
    w.add_file_type(LlamaFileType.MOSTLY_F16)
    w.add_context_length(context)
    w.add_embedding_length(d)
    w.add_block_count(layers)
    w.add_feed_forward_length(ff)
    w.add_head_count(heads)
    w.add_head_count_kv(1)
    w.add_layer_norm_rms_eps(1e-6)
    w.add_rope_dimension_count(head)
    w.add_rope_freq_base(10000.0)
    w.add_vocab_size(n)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(tokens)
    w.add_token_types(types)
    w.add_token_merges(merges)
    w.add_bos_token_id(bos)
    w.add_eos_token_id(eos)
    w.add_pad_token_id(bos)
    w.add_add_bos_token(False)
    w.add_chat_template(template)
    if embeds:
        w.add_pooling_type(PoolingType.MEAN)

    w.add_tensor("token_embd.weight", embd)
    w.add_tensor("output_norm.weight", np.ones(d, np.float32))
    w.add_tensor("output.weight", outp.astype(np.float16))
    for b in range(layers):
        p = f"blk.{b}."
        w.add_tensor(p + "attn_norm.weight", np.ones(d, np.float32))
        w.add_tensor(p + "attn_q.weight", f16(d, d))
        w.add_tensor(p + "attn_k.weight", f16(head, d))
        w.add_tensor(p + "attn_v.weight", f16(head, d))
        w.add_tensor(p + "attn_output.weight", np.zeros((d, d), np.float16))
        w.add_tensor(p + "ffn_norm.weight", np.ones(d, np.float32))
        w.add_tensor(p + "ffn_gate.weight", f16(ff, d))
        w.add_tensor(p + "ffn_up.weight", f16(ff, d))
        w.add_tensor(p + "ffn_down.weight", np.zeros((d, ff), np.float16))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return out
