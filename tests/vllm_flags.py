"""`python -m tests.vllm_flags` writes tests/contract/vllm-flags.json: what the command line of the pinned vLLM knows, read from its wheel.

The wheel is fetched from the package index and read as text: its parser cannot be imported without PyTorch.
"""

import ast
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from model_server.vllm import VERSION

KEPT = Path(__file__).parent / "contract" / "vllm-flags.json"
_CHOICES = {
    "--kv-cache-dtype": ("vllm/config/cache.py", "CacheDType"),
    "--dtype": ("vllm/config/model.py", "ModelDType"),
    "--quantization": ("vllm/model_executor/layers/quantization/__init__.py", "QuantizationMethods"),
}
"""Flag to where the values that it takes stand, as a Literal."""


def flags(wheel: zipfile.ZipFile) -> list[str]:
    """Every option: those that are added by name, and one for each field of the classes of the front end."""
    engine, front = (ast.parse(wheel.read(f"vllm/{path}.py")) for path in ("engine/arg_utils", "entrypoints/launchers/cli_args"))
    found = {
        argument.value
        for tree in (engine, front)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument"
        for argument in call.args
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str) and argument.value.startswith("--")
    }
    for item in ast.walk(front):
        if isinstance(item, ast.ClassDef) and item.name in ("BaseFrontendArgs", "FrontendArgs"):
            fields = (each.target for each in item.body if isinstance(each, ast.AnnAssign))
            found |= {f"--{field.id.replace('_', '-')}" for field in fields if isinstance(field, ast.Name)}
    return sorted(found)


def choices(wheel: zipfile.ZipFile, path: str, name: str) -> list[str]:
    """The values of a Literal of this name. Raises StopIteration where there is none."""
    tree = ast.parse(wheel.read(path))
    value = next(
        each.value
        for each in ast.walk(tree)
        if isinstance(each, ast.Assign | ast.AnnAssign)
        and name
        in [target.id for target in (each.targets if isinstance(each, ast.Assign) else [each.target]) if isinstance(target, ast.Name)]
    )
    return [each.value for each in ast.walk(value) if isinstance(each, ast.Constant) and isinstance(each.value, str)] if value else []


def document(path: Path) -> dict[str, object]:
    """What is kept of a wheel."""
    with zipfile.ZipFile(path) as wheel:
        known = {flag: choices(wheel, *where) for flag, where in _CHOICES.items()}
        return {
            "version": VERSION,
            "wheel": path.name,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "flags": flags(wheel),
            "choices": known,
        }


def main() -> int:
    with tempfile.TemporaryDirectory() as work:
        wanted = ["--no-deps", "--only-binary=:all:", "--platform=manylinux_2_28_x86_64", f"vllm=={VERSION}"]
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "-d", work, *wanted], check=True)
        (path,) = Path(work).glob("*.whl")
        KEPT.write_text(json.dumps(document(path), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
