"""The context contract, asked of the running servers: does every replica hold every model with the context that was promised?"""

import asyncio
import json
import logging
import socket
import sys
import time
from typing import Any

import aiohttp

from ollama_agent.problems import LOWER_IT
from ollama_agent.settings import ProbeSettings

log = logging.getLogger("ollama_agent")
_MESSAGE_BYTES = 4096
"""What Kubernetes keeps of a termination message."""
_ASK_S = 5.0

Answers = dict[str, dict[str, Any]]
"""Replica to what its agent said."""


async def _addresses(host: str, port: int) -> list[str]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return []
    hosts = sorted({str(info[4][0]) for info in found})
    return [f"[{each}]:{port}" if ":" in each else f"{each}:{port}" for each in hosts]


async def ask(settings: ProbeSettings, session: aiohttp.ClientSession) -> Answers:
    """Every replica of the revision that answers."""

    async def one(address: str) -> dict[str, Any] | None:
        try:
            async with session.get(f"http://{address}/context") as response:
                response.raise_for_status()
                return await response.json()
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            return None

    found = await asyncio.gather(*(one(address) for address in await _addresses(settings.host, settings.port)))
    return {each["replica"]: each for each in found if each is not None and each["revision"] == settings.revision}


def broken(settings: ProbeSettings, answers: Answers) -> list[str]:
    """Promises that a server has already broken, one line each."""
    lines: list[str] = []
    for replica, answer in sorted(answers.items()):
        for model in answer["models"]:
            least = 0 if model["name"] in settings.embedding else settings.min_context
            got, want = model["effective_context"], max(least, model["context_length"])
            if model["name"] in settings.models and got is not None and got < want:
                lines.append(f"models.{model['name']}: got effective context {got} on {replica}, want >= {want}; {LOWER_IT}")
    return lines


def failing(settings: ProbeSettings, answers: Answers) -> set[str]:
    """What replicas have tried and could not do, one line each; a model that they only wait for is none."""
    return {
        f"{problem['line']} (on {replica})"
        for replica, answer in sorted(answers.items())
        for problem in answer.get("problems", [])
        if problem["kind"] != "waiting"
    }


def missing(settings: ProbeSettings, answers: Answers) -> list[str]:
    """What must still come, in a few words each."""
    waiting = [f"{replica}: {answer['reason']}" for replica, answer in sorted(answers.items()) if answer["reason"]]
    if len(answers) < settings.replicas:
        waiting.append(f"{len(answers)} of {settings.replicas} replicas of this revision answer")
    for name, wanted in settings.models.items():
        holders = [
            answer for answer in answers.values() if any(each["name"] == name and each["effective_context"] for each in answer["models"])
        ]
        if len(holders) < wanted and not waiting:
            waiting.append(f"models.{name} on {len(holders)} of {wanted} replicas")
    return waiting


def effective(settings: ProbeSettings, answers: Answers) -> dict[str, int]:
    """Model to the smallest context that a replica has for it."""
    found: dict[str, int] = {}
    for answer in answers.values():
        for model in answer["models"]:
            name, context = model["name"], model["effective_context"]
            if name in settings.models and context is not None:
                found[name] = min(context, found.get(name, context))
    return found


async def probe(settings: ProbeSettings) -> int:
    """Wait until all is as promised, or something cannot become so. The result is JSON, or the lines that say what is wrong."""
    deadline, said = time.monotonic() + settings.timeout_s, ""
    since: dict[str, float] = {}
    """Problem to when it was first seen, without a look that did not show it."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_ASK_S)) as session:
        while True:
            answers = await ask(settings, session)
            if lines := broken(settings, answers):
                return _failed(settings, lines)
            since = {line: since.get(line, time.monotonic()) for line in failing(settings, answers)}
            if lines := sorted(line for line, first in since.items() if time.monotonic() - first >= settings.patience_s):
                return _failed(settings, lines)
            waiting = missing(settings, answers)
            if not waiting:
                break
            if time.monotonic() > deadline:
                got = f"{', '.join(waiting)} after {settings.timeout_s:g} s"
                line = f"fleet: got {got}, want {settings.replicas} ready replicas; run make explain"
                return _failed(settings, [line])
            if waiting[0] != said:
                said = waiting[0]
                log.info("waiting for %s", "; ".join(waiting))
            await asyncio.sleep(settings.poll_s)
    result = json.dumps({"models": effective(settings, answers)}, sort_keys=True)
    settings.result.write_text(result)
    print(result)
    return 0


def _failed(settings: ProbeSettings, lines: list[str]) -> int:
    text = "\n".join(lines)
    settings.result.write_bytes(text.encode()[:_MESSAGE_BYTES])
    print("\n".join(f"error: {line}" for line in lines), file=sys.stderr)
    return 1
