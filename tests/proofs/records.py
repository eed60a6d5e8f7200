"""What takes too long for `make test` is a proof: a pytest module below tests/proofs whose last result is kept in the repository.

A module names its proof and the paths that the proof guards:

    PROOF = Proof("fresh-root", guards=("README.md", "devcluster", "tools/*/go.mod"))

The result holds a digest of each guarded path's content. A proof is stale when a digest differs, when the proof failed, and when it
was never run. Digests, not commits and dates, because a shallow clone has no history, and because a commit that is undone changes
nothing. What git ignores is not part of a path's content; what is not committed yet is. Of Markdown only the code blocks count: prose is
not run.
"""

import hashlib
import importlib
import json
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CODE_BLOCK = re.compile(r"^ *```[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
MODULES = "tests/proofs/test_*.py"


class ProofError(Exception):
    """A proof is declared or recorded wrongly; the message says what to do."""


@dataclass(frozen=True)
class Proof:
    """What a module of tests/proofs proves."""

    name: str
    guards: tuple[str, ...]
    """Git path specifications: files, directories, patterns such as `tools/*/go.mod`. A change of their content makes the proof stale."""


@dataclass(frozen=True)
class Declared:
    """A proof, and the file with its tests, which is guarded too."""

    proof: Proof
    file: str
    root: Path = ROOT

    @property
    def name(self) -> str:
        return self.proof.name

    @property
    def record(self) -> Path:
        return self.root / "bench" / "results" / "proofs" / f"{self.name}.json"

    @property
    def command(self) -> str:
        return f"make proof NAME={self.name}"

    def digests(self) -> dict[str, str]:
        """Guarded path to the digest of its content. Raises ProofError for a path that matches nothing."""
        return {guard: _digest(self.root, guard, self.file) for guard in sorted({*self.proof.guards, self.file})}

    def uncommitted(self) -> list[str]:
        """Guarded files that differ from the commit: a result would speak of something that nobody else can get."""
        lines = _git(self.root, "status", "--porcelain", "-z", "--no-renames", "--", *self.proof.guards, self.file).split("\0")
        return sorted(line[3:] for line in lines if line)

    def stale(self) -> str | None:
        """Why the recorded result does not hold; None while it does."""
        try:
            record = json.loads(self.record.read_text())
        except FileNotFoundError:
            return "never run"
        except ValueError:
            return f"{self.record.relative_to(self.root)} is not JSON"
        if record.get("result") != "passed":
            return f"{record.get('result')} on {record.get('date')}"
        before, now = record.get("digests", {}), self.digests()
        changed = sorted(guard for guard in {*before, *now} if before.get(guard) != now.get(guard))
        return f"{', '.join(changed)} changed since {record.get('date')}" if changed else None

    def write(self, *, passed: bool, conditions: dict[str, Any], figures: dict[str, Any], digests: dict[str, str]) -> None:
        """Keep a result: `digests` are those of before the run."""
        document = {
            "proof": self.name,
            "result": "passed" if passed else "failed",
            **conditions,
            "commit": _git(self.root, "rev-parse", "HEAD").strip(),
            "digests": digests,
            "figures": figures,
        }
        self.record.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.record.with_suffix(".partial")
        fresh.write_text(json.dumps(document, indent=1) + "\n")
        fresh.replace(self.record)


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout


def _digest(root: Path, guard: str, file: str) -> str:
    listed = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", guard).split("\0")
    names = sorted({name for name in listed if name and (root / name).is_file()})
    if not names:
        raise ProofError(f"{file}: got the guarded path {guard}, which no file matches, want one that exists; correct it")
    whole = hashlib.sha256()
    for name in names:
        content = (root / name).read_bytes()
        if name.endswith(".md"):
            content = "".join(CODE_BLOCK.findall(content.decode())).encode()
        whole.update(f"{name}\0{len(content)}\0".encode() + content)
    return whole.hexdigest()


def declared(root: Path = ROOT) -> list[Declared]:
    """Every proof, by name. Raises ProofError for a module without one, and for a name that is used twice."""
    found: dict[str, Declared] = {}
    for path in sorted(root.glob(MODULES)):
        file = str(path.relative_to(root))
        proof = getattr(importlib.import_module(file.removesuffix(".py").replace("/", ".")), "PROOF", None)
        if not isinstance(proof, Proof):
            raise ProofError(f"{file}: got no PROOF, want one; see docs/proofs.md")
        unique(found, Declared(proof, file, root))
    return [found[name] for name in sorted(found)]


def unique(found: dict[str, Declared], new: Declared) -> None:
    """Add a proof to `found`. Raises ProofError for a name that is there already."""
    if new.name in found:
        raise ProofError(f"{new.file}: got the name {new.name}, which {found[new.name].file} has, want one of its own; choose another")
    found[new.name] = new


def stale(proofs: Iterable[Declared]) -> dict[str, str]:
    """One line for each proof whose result does not hold, by name: why, and the command that renews it."""
    reasons = {each: each.stale() for each in proofs}
    return {each.name: f"{each.name}: {reason}; {each.command}" for each, reason in reasons.items() if reason}
