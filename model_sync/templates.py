"""Chat templates are programs that come with a model and run in its server; these are the ones that we let near it.

llama.cpp's engine for Jinja (common/jinja) knows no file, no network, no environment and no Python object. What a template can do there
is burn time and memory, or end its own engine by recursion. Other programs render the same file in Python, where attributes with two
underscores reach everything. Templates of Ollama's own, in Go's text/template with functions that reach nothing either
(template/template.go of 0.32.15), run in the server of all models: they may not repeat themselves at will.
"""

import re

from model_sync.store import StoreError

TEMPLATE_BYTES = 256 << 10
"""The longest of known models has 25 KB."""
DEPTH = 64
"""Nested blocks or brackets. 20,000 blocks end llama.cpp's engine by a stack overflow."""
_REACHES_OUT = re.compile(r"""\{%[-+]?\s*(include|import|from|extends)\b|[.\[(|]\s*['"]?(__\w+__)""")
_NESTING = re.compile(r"\{%[-+]?\s*(end)?(if|for|macro|call|filter|set)\b([^%]*)|[(\[{]|[)\]}]")
_GO_ACTION = re.compile(r"\{\{-?\s*(range|template|block)\b([^}]*)")
_GO_FIELD = re.compile(r"(^|[\s(=$])\.\w*|\$\w*\.\w")
"""Lists come with a request, as fields; `range` over a number would be a loop of the template's own."""


def check(template: str) -> None:
    """Raises StoreError, without the model's name, when this is no template that we run in llama.cpp."""
    _check_size(template)
    if found := _REACHES_OUT.search(template):
        raise _error(f"with {found[1] or found[2]}", "one that reaches nothing outside of it")
    if (depth := _depth(template)) > DEPTH:
        raise _error(f"that nests {depth} deep", f"at most {DEPTH}")


def check_go(template: str) -> None:
    """The same for one of Ollama's own, the layer `template` of a manifest."""
    _check_size(template)
    for action in _GO_ACTION.finditer(template):
        if action[1] != "range" or not _GO_FIELD.search(action[2]):
            raise _error(f"with {action[0][2:].strip()[:60]!r}", "loops over fields of the request alone")


def _check_size(template: str) -> None:
    size = len(template.encode(errors="replace"))
    if size > TEMPLATE_BYTES:
        raise _error(f"of {size} bytes", f"at most {TEMPLATE_BYTES}")


def _error(got: str, want: str) -> StoreError:
    return StoreError(f"got a chat template {got}, want {want}; do not use this model")


def _depth(template: str) -> int:
    """The deepest nesting of blocks or brackets; brackets of plain text count, too, and no template has that many open."""
    deepest = blocks = brackets = 0
    for found in _NESTING.finditer(template):
        word = found[2]
        if word is None:
            brackets = max(brackets + (1 if found[0] in "([{" else -1), 0)
        elif found[1]:
            blocks = max(blocks - 1, 0)
        elif word != "set" or "=" not in found[3]:
            blocks += 1
        deepest = max(deepest, blocks, brackets)
    return deepest
