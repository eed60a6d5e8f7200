"""Run by the Python of `python-base` and of what stands on it: every package has what it wants, in byte code, and nobody's files over its
own."""

import subprocess
import sys
from collections import defaultdict
from importlib.metadata import distributions
from importlib.util import cache_from_source
from pathlib import Path

import accelerate  # pyright: ignore[reportMissingImports]
import torch  # pyright: ignore[reportMissingImports]
import transformers  # pyright: ignore[reportMissingImports]

assert torch.version.cuda, "PyTorch for CPUs"
for module in (accelerate, torch, transformers):
    assert Path(cache_from_source(str(module.__file__))).exists(), f"{module}: no byte code, and nothing can be written where it runs"
subprocess.run([sys.executable, "-m", "pip", "check"], check=True)
files: dict[str, dict[str, str]] = defaultdict(dict)
for each in distributions():
    for file in each.files or ():
        if file.hash:
            files[str(file)][each.name] = file.hash.value
over = {file: sorted(of) for file, of in files.items() if len(set(of.values())) > 1}
# From packages' own builds; nobody imports it.
over.pop("build_backend.py", None)
assert over == {}, f"packages that lie over each other: {over}"
