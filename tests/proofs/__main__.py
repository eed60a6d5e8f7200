"""`make proof`: run the stale proofs, or the one that is named, and keep their results."""

import argparse
import subprocess
import sys
from collections.abc import Sequence

from tests.proofs.records import ROOT, ProofError, declared, stale


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.proofs", description=__doc__)
    parser.add_argument("name", nargs="?", help="default: every stale proof")
    parser.add_argument("--check", action="store_true", help="run nothing; fail when a proof is stale")
    options = parser.parse_args(arguments)
    try:
        proofs = declared()
        lines = stale(proofs)
    except ProofError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    names = [each.name for each in proofs]
    if options.name and options.name not in names:
        print(f"error: NAME: got {options.name}, want one of {', '.join(names)}", file=sys.stderr)
        return 1
    if options.check:
        for line in lines.values():
            print(f"stale: {line}", file=sys.stderr)
        return int(bool(lines))
    failed = False
    for proof in proofs:
        if proof.name == options.name or (not options.name and proof.name in lines):
            print(f"proof: {proof.name}", file=sys.stderr, flush=True)
            status = subprocess.call([sys.executable, "-m", "pytest", "-m", "proof", "--record", proof.file], cwd=ROOT)
            if status not in (0, 1):
                return status
            failed |= bool(status)
    return int(failed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
