"""`make release`: what a release consists of, in dist/<version>/, and a manifest with the digest of each part. Nothing is published.

The Makefile has asked before whether every proof holds.
"""

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from infra import ROOT
from infra.engine.errors import CommandError
from infra.program.settings.committed import stack_config
from infra.program.settings.section import SettingsError

MANIFEST = "manifest.json"
_DIGEST = re.compile(r"\S+@sha256:[0-9a-f]{64}")


def version(root: Path) -> str:
    """Of the project."""
    return str(tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"])


def changes(root: Path, number: str) -> str:
    """What CHANGELOG.md says of a version. Raises CommandError."""
    text = (root / "CHANGELOG.md").read_text()
    found = re.search(rf"^## {re.escape(number)}(?: [^\n]*)?\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None or not found[1].strip():
        got = "got no section" if found is None else "got an empty section"
        raise CommandError(f"CHANGELOG.md: {got} '## {number}', want what has changed; write it, or correct version in pyproject.toml")
    return found[1].strip()


def commit(root: Path) -> str:
    """The commit that is released. Raises CommandError for what it does not have."""
    changed = _git(root, "status", "--porcelain").splitlines()
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise CommandError(f"git: got changes in {changed[0][3:]}{more}, want all of it committed; a release is of a commit")
    return _git(root, "rev-parse", "HEAD").strip()


def images(config: Mapping[str, object], stack: str) -> dict[str, str]:
    """The images that a stack runs, each by its digest. Raises CommandError."""
    section = config.get("modelfleet:images")
    refs = dict(section.get("refs") or {}) if isinstance(section, dict) else {}
    if not refs:
        command = f"python -m infra.preparation.images {stack}"
        raise CommandError(f"STACK: got {stack}, which names no images, want refs of each; run {command}, sign them, and commit the file")
    for name, ref in refs.items():
        if not _DIGEST.fullmatch(str(ref)):
            raise CommandError(f"modelfleet:images.refs.{name}: got {ref}, want it by digest (NAME@sha256:…); correct it")
    return refs


def collect(root: Path, stack: str, wheel: Callable[[Path], Path], tools: Callable[[Path], tuple[Path, str]]) -> Path:
    """The manifest of a release, beside its files. `wheel` and `tools` write theirs into a directory. Raises CommandError."""
    number = version(root)
    text, released = changes(root, number), commit(root)
    named = images(stack_config(stack), stack) if stack else {}
    target = root / "dist" / number
    fresh = target.with_name(f".{number}.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    files = [wheel(fresh), tools(fresh)[0]]
    document = {
        "version": number,
        "commit": released,
        "committed": _git(root, "show", "--no-patch", "--format=%cI", "HEAD").strip(),
        "changes": text,
        "files": {path.name: f"sha256:{_sha256(path)}" for path in sorted(files)},
        "images": named,
    }
    (fresh / MANIFEST).write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    shutil.rmtree(target, ignore_errors=True)
    fresh.replace(target)
    return target / MANIFEST


def wheel_of(directory: Path) -> Path:
    """Build the wheel of the command line into a directory, as `make wheel` does. Raises CommandError."""
    argv = [sys.executable, "-m", "modelfleet.wheel", str(directory)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise CommandError(f"wheel: got {done.stderr.strip()[-500:]!r}, want one; run make wheel")
    return Path(done.stdout.strip())


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.preparation.release", description=__doc__)
    parser.add_argument("--stack", default="", help="whose images the release has")
    stack = parser.parse_args(arguments).stack
    from devcluster import archive, layout  # noqa: PLC0415 (who builds nothing here need not load it)

    try:
        print(collect(ROOT, stack, wheel_of, archive.write))
    except (CommandError, SettingsError, archive.ToolchainError, layout.ClusterError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
