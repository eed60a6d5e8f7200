"""What is attached to an image once it is pushed: SBOM, vulnerability report, signature; and a later scan of it.

`python -m images.supply_chain --help` says how.

syft reads the image, grype compares the SBOM with its database, cosign signs the image and the two documents: the tools
on the PATH, or the pinned ones of `tools/`. All of it lands beside the image in its registry, with the login of your Docker configuration.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from devcluster import toolchain
from devcluster.toolchain import ToolchainError

SEVERITIES = ("negligible", "low", "medium", "high", "critical")
_TOOLS = {"syft": "grype", "grype": "grype", "cosign": "cosign"}
"""Command to the module of `tools/` that it is built in."""
_SBOM, _REPORT = "sbom.spdx.json", "vulnerabilities.json"
NO_LOG = ("--use-signing-config=false", "--tlog-upload=false")
"""Keys of one's own need no public log, and a private registry's names do not belong in one."""


class SupplyChainError(Exception):
    """A step failed, or the image has vulnerabilities that the policy refuses; the message says which."""


class RefusedImageError(SupplyChainError):
    """The image was looked at, and has vulnerabilities that are refused; `found` has how many of each severity."""

    def __init__(self, message: str, found: Counter[str]) -> None:
        super().__init__(message)
        self.found = found


@dataclass(frozen=True, kw_only=True)
class Scanner:
    """Looks for vulnerabilities. `plain_http` is for registries on loopback alone."""

    fail_on: str = "critical"
    plain_http: bool = False
    env: dict[str, str] = field(default_factory=dict)

    def scan(self, reference: str) -> Counter[str]:
        """How many vulnerabilities of each severity are in `repository@sha256:…`.

        Raises RefusedImageError when one is as severe as `fail_on`, and SupplyChainError when it could not be looked at.
        """
        with tempfile.TemporaryDirectory(prefix="modelfleet-supply-chain-") as work:
            return self._scan(reference, Path(work))

    def _scan(self, reference: str, work: Path) -> Counter[str]:
        """The same; its two documents, `_SBOM` and `_REPORT`, are then in `work`."""
        if "@sha256:" not in reference:
            raise SupplyChainError(f"{reference}: got a tag, want a digest, since a tag can move; write repository@sha256:…")
        self._run("syft", "scan", f"registry:{reference}", "--output", f"spdx-json={work / _SBOM}")
        self._run("grype", f"sbom:{work / _SBOM}", "--output", "json", "--file", str(work / _REPORT))
        found = _severities(work / _REPORT)
        refused = [name for name in SEVERITIES[SEVERITIES.index(self.fail_on) :] if found[name]]
        if refused:
            counts = ", ".join(f"{found[name]} {name}" for name in refused)
            raise RefusedImageError(
                f"{reference}: got {counts} vulnerabilities, want none of {self.fail_on} or worse; "
                "rebuild on newer bases, or raise --fail-on with a reason",
                found,
            )
        return found

    def _run(self, command: str, *arguments: str) -> None:
        plain = {"SYFT_REGISTRY_INSECURE_USE_HTTP": "true"} if self.plain_http else {}
        quiet = {"NO_COLOR": "1", "SYFT_CHECK_FOR_APP_UPDATE": "false", "GRYPE_CHECK_FOR_APP_UPDATE": "false"}
        done = subprocess.run(
            [_binary(command), *arguments],
            env=os.environ | quiet | plain | self.env,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode:
            raise SupplyChainError(f"{command} {arguments[0]}: got {done.stderr.strip()[-800:]!r}, want success; correct that first")


@dataclass(frozen=True, kw_only=True)
class Publisher(Scanner):
    """Scans, and signs with one key what may run."""

    key: Path
    """cosign's private key; its password comes from COSIGN_PASSWORD."""

    def publish(self, reference: str) -> Counter[str]:
        """Scan, attach and sign `repository@sha256:…`. Returns how many vulnerabilities there are of each severity.

        Raises SupplyChainError, and signs nothing then, when one is as severe as `fail_on`: an unsigned image cannot run
        where `images.trust` is set.
        """
        with tempfile.TemporaryDirectory(prefix="modelfleet-supply-chain-") as name:
            work = Path(name)
            found = self._scan(reference, work)
            self._attest(reference, "spdxjson", work / _SBOM)
            self._attest(reference, "vuln", _scan_predicate(work / _REPORT, work / "scan.json"))
            self._cosign("sign", reference)
        return found

    def _attest(self, reference: str, kind: str, predicate: Path) -> None:
        self._cosign("attest", "--type", kind, "--predicate", str(predicate), reference)

    def _cosign(self, command: str, *arguments: str) -> None:
        plain = ["--allow-http-registry"] if self.plain_http else []
        self._run("cosign", command, "--key", str(self.key), "--yes", *NO_LOG, *plain, *arguments)


def _binary(command: str) -> str:
    found = shutil.which(command)
    return found or str(toolchain.ensure([_TOOLS[command]]) / command)


def _severities(report: Path) -> Counter[str]:
    matches = json.loads(report.read_text())["matches"]
    return Counter(str(match["vulnerability"]["severity"]).lower() for match in matches)


def _scan_predicate(report: Path, target: Path) -> Path:
    """grype's report in the form of cosign's vulnerability predicate. Source: sigstore/cosign, COSIGN_VULN_ATTESTATION_SPEC.md."""
    document = json.loads(report.read_text())
    descriptor = document.get("descriptor", {})
    finished = descriptor.get("timestamp", "")
    scanner = {"uri": "https://github.com/anchore/grype", "version": descriptor.get("version", ""), "result": document}
    predicate = {"invocation": {"parameters": []}, "scanner": scanner, "metadata": {"scanStartedOn": finished, "scanFinishedOn": finished}}
    target.write_text(json.dumps(predicate))
    return target


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m images.supply_chain", description=__doc__)
    parser.add_argument("references", nargs="+", metavar="IMAGE", help="repository@sha256:…, as the stack output `fleet` lists them")
    parser.add_argument(
        "--key", type=Path, help="cosign's private key; COSIGN_PASSWORD has its password. Without it: scan, and sign nothing"
    )
    parser.add_argument("--fail-on", choices=SEVERITIES, default="critical", help="least severity that is refused (default critical)")
    parser.add_argument("--summary", type=Path, help="file for the sums over all images, as JSON")
    parser.add_argument("--plain-http", action="store_true", help="the registry speaks HTTP; for loopback only")
    options = parser.parse_args(arguments)
    wanted = {"fail_on": options.fail_on, "plain_http": options.plain_http}
    look = Publisher(key=options.key, **wanted).publish if options.key else Scanner(**wanted).scan
    failed, unread, total = False, 0, Counter[str]()
    for reference in options.references:
        try:
            found = look(reference)
        except (SupplyChainError, ToolchainError) as error:
            failed = True
            print(f"error: {error}", file=sys.stderr)
            if isinstance(error, RefusedImageError):
                total += error.found
            else:
                unread += 1
        else:
            total += found
            counts = ", ".join(f"{count} {name}" for name, count in found.items()) or "none"
            print(f"{reference}: {'signed; ' if options.key else ''}vulnerabilities: {counts}")
    if options.summary:
        sums = {name: total[name] for name in ("unknown", *SEVERITIES)}
        options.summary.write_text(json.dumps({"images": len(options.references), "unread": unread, "vulnerabilities": sums}))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
