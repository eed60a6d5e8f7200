"""What must hold of every Dockerfile, as plain functions over its text."""

import re
from collections.abc import Mapping
from typing import Any

from infra.analysis.policy.guards import SECRET_NAME

_COMPILERS = re.compile(
    r"(?<![\w./-])(cuda-toolkit\S*|cuda-nvcc\S*|build-essential|g\+\+\S*|gcc\S*|cpp|nvcc|clang\S*|llvm\S*|gfortran\S*"
    r"|rustc|rustup|cargo|golang\S*|cmake|make|ninja-build|meson|\S+-dev)(?![\w./-])"
)
_INSTALLS = re.compile(r"\b(pip3?|uv|pipx|poetry|conda|mamba)\b.*\b(install|sync|add)\b")
_BASE = re.compile(r"^ARG BASE$", re.MULTILINE)
"""Without a default, so that a build must say which."""
_COMPILES = re.compile(r'^LABEL .*\bdev\.modelfleet\.compiles="[^"]{20,}"')
_LOCKED = re.compile(r"--require-hashes|\buv sync\b.*--(locked|frozen)")


def _stages(text: str) -> list[tuple[str, list[str]]]:
    """(base, instructions) of each stage, continuation lines joined."""
    stages: list[tuple[str, list[str]]] = []
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        words = line.split()
        if words and words[0].upper() == "FROM":
            stages.append((words[1], []))
        elif words and stages and not line.startswith("#"):
            stages[-1][1].append(line.strip())
    return stages


def _names(text: str) -> set[str]:
    return {match.lower() for match in re.findall(r"^FROM \S+ AS (\S+)", text, re.MULTILINE | re.IGNORECASE)}


def bases_are_pinned(text: str, pins: Mapping[str, Any]) -> list[str]:
    """Every base is a stage of this very file, an image of ours that the build gives by digest, or a tag of pins.toml: `latest` moves, and
    vendors delete old CUDA tags."""
    found: list[str] = []
    for base, _ in _stages(text):
        image, _, digest = base.partition("@")
        name, _, tag = image.partition(":")
        if base.lower() in _names(text) or (base == "${BASE}" and _BASE.search(text)):
            continue
        pin = pins.get(name, {})
        if pin.get("tag") != tag:
            found.append(f"FROM {base}: got an unpinned base, want a tag of images/pins.toml; pin it there with source and date")
        elif pin.get("digest", "") != digest:
            found.append(f"FROM {base}: got {digest or 'no digest'}, want {pin['digest'] or 'none'} of images/pins.toml; run make pins")
    return found


def runtime_has_no_compiler(text: str) -> list[str]:
    """But where an image says by a label what it compiles while it runs (docs/adr/0027-a-compiler-beside-vllm.md)."""
    _, instructions = _stages(text)[-1]
    if any(_COMPILES.search(line) for line in instructions):
        return []
    packages = [match for line in instructions if line.startswith("RUN") for match in _COMPILERS.findall(line)]
    return [f"{package}: got it in the final stage, want compilers in a builder stage only; copy the result" for package in packages]


def packages_are_locked(text: str) -> list[str]:
    """Each command of a line by itself: one that is locked says nothing of the next."""
    commands = [
        command.strip()
        for _, instructions in _stages(text)
        for line in instructions
        if line.startswith("RUN")
        for command in re.split(r"&&|\|\|?|;", line)
    ]
    return [
        f"{command}: got packages without hashes, want a lock; use --require-hashes -r"
        for command in commands
        if _INSTALLS.search(command) and not _LOCKED.search(command)
    ]


def downloads_have_a_digest(text: str) -> list[str]:
    """What a build fetches by itself may be another thing tomorrow."""
    lines = [line for _, instructions in _stages(text) for line in instructions]
    return [
        f"{line}: got a download without a digest, want ADD --checksum=sha256:…; name it"
        for line in lines
        if re.search(r"\b(curl|wget)\b.*https?://", line) or (re.match(r"ADD\b.*https?://", line) and "--checksum=" not in line)
    ]


def has_no_secrets(text: str) -> list[str]:
    """An argument or a variable stays in the image's history, for everybody who can pull it."""
    named = [
        part.partition("=")[0]
        for _, instructions in _stages(text)
        for line in instructions
        if re.match(r"(ARG|ENV)\b", line)
        for part in line.split()[1:]
    ]
    return [
        f"{name}: got a secret in the image, want it mounted: RUN --mount=type=secret; remove it"
        for name in named
        if SECRET_NAME.search(name)
    ]


def has_nothing_that_kubernetes_ignores(text: str) -> list[str]:
    """A HEALTHCHECK is not acted on, and its curl is not in the image; a VOLUME hides what the image has there."""
    found = re.findall(r"^\s*(HEALTHCHECK|VOLUME)\b", text, re.MULTILINE)
    return [f"{instruction}: got it, want probes and volumes in the pod; remove it" for instruction in found]


def runs_as_a_number(text: str) -> list[str]:
    """Kubernetes can check runAsNonRoot only against a numeric user."""
    users = [line.split()[1] for line in _stages(text)[-1][1] if line.startswith("USER")]
    if users and re.fullmatch(r"[1-9]\d*(:\d+)?", users[-1]):
        return []
    return [f"USER: got {users[-1] if users else 'root'}, want a number other than 0; add USER 10001:10001"]


def can_run_its_entrypoint(text: str) -> list[str]:
    """A python entrypoint needs a base that has Python, or a stage that installs it."""
    base, instructions = _stages(text)[-1]
    python = any(re.match(r'(ENTRYPOINT|CMD) \["(/\S*/)?python', line) for line in instructions)
    has_python = base.startswith("python:") or any("python3" in line for line in instructions if line.startswith("RUN"))
    return [f"ENTRYPOINT: got python on {base}, want a base that has it; build on python"] if python and not has_python else []


def violations(text: str, pins: Mapping[str, Any]) -> list[str]:
    """Every violation of every rule of this module."""
    rules = (
        *(runtime_has_no_compiler, packages_are_locked, downloads_have_a_digest, has_no_secrets),
        *(has_nothing_that_kubernetes_ignores, runs_as_a_number, can_run_its_entrypoint),
    )
    return bases_are_pinned(text, pins) + [line for rule in rules for line in rule(text)]
