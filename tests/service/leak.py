"""Conversations that would show it if an answer came from another one: each has a marker, and the model says what it attends to.

llama.cpp's issues 27148 and 27422 (2026-08) tell of answers that continue an unrelated, finished conversation, where old prompts are kept
in host memory and slots are taken over by several requests at once. So: a pool of finished conversations first, then new ones and second
turns at the same time, more than there are slots.
"""

import random
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.service.processes import Service

MARKERS = [f"<code-{random.Random(number).getrandbits(32):08x}>" for number in range(120)]  # noqa: S311 (not a secret)
"""Not numbered: a small real model goes on counting, and says the next one by itself."""
SEEDED = 30
_KEPT = re.compile(r"cached n_tokens = (\d+)")
"""What Ollama's engine says of each prompt in the log: how many tokens of it its slot still had. Ollama itself says it to no client."""
_WORDS = [
    "build",
    "test",
    "merge",
    "deploy",
    "review",
    "index",
    "cache",
    "shard",
    "probe",
    "drain",
    "quota",
    "claim",
    "node",
    "pod",
    "token",
    "slot",
    "batch",
    "trace",
]


@dataclass
class Found:
    """What a run saw."""

    answers: int = 0
    cached_tokens: int = 0
    """Of prompts: without any, nothing of the cache was tried."""
    crossed: list[str] = field(default_factory=list)
    """A line for each answer that has, or weighed, a marker of another conversation."""
    own: int = 0
    """Answers with the conversation's own marker."""


@dataclass
class Conversation:
    marker: str
    messages: list[dict[str, str]]

    @classmethod
    def new(cls, marker: str, draw: random.Random) -> "Conversation":
        filler = " ".join(draw.choices(_WORDS, k=draw.randrange(10, 120)))
        system = {"role": "system", "content": "You keep the code of each conversation, and say it when you are asked for it."}
        return cls(marker, [system, {"role": "user", "content": f"{filler}. The code is {marker}. Say the code."}])

    def go_on(self, answer: str, draw: random.Random) -> None:
        again = f"{' '.join(draw.choices(_WORDS, k=draw.randrange(5, 40)))}. Say the code again."
        self.messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": again}]


def ask(client: httpx.Client, url: str, model: str, conversation: Conversation, found: Found) -> str:
    body = {"model": model, "messages": conversation.messages, "temperature": 0, "max_tokens": 24, "logprobs": True, "top_logprobs": 5}
    response = client.post(f"{url}/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    said = response.json()
    choice = said["choices"][0]
    answer = str(choice["message"]["content"])
    found.answers += 1
    found.cached_tokens += (said["usage"].get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    weighed = _weighed(choice)
    found.own += conversation.marker in answer
    if weighed or any(marker in answer for marker in MARKERS if marker != conversation.marker):
        found.crossed.append(f"{conversation.marker} got {answer!r}, weighed {weighed}")
    return answer


def _weighed(choice: dict[str, Any]) -> list[str]:
    """Markers beside the first token that are likelier than a token that nothing speaks for. A real model weighs other tokens always."""
    _, *others = choice["logprobs"]["content"][0]["top_logprobs"]
    return [each["token"] for each in others if each["token"] in MARKERS and each["logprob"] > others[-1]["logprob"] + 0.01]


def _rounds(draw: random.Random, answers: int) -> Iterator[list[Conversation]]:
    """Conversations that are asked at the same time: a pool, then new ones mixed with second and third turns of old ones."""
    markers = list(MARKERS)
    draw.shuffle(markers)
    made = [Conversation.new(markers.pop(), draw) for _ in range(SEEDED)]
    for conversation in made:
        yield [conversation]
    asked = SEEDED
    while asked < answers:
        if len(markers) < 40:
            # The oldest are forgotten, so a marker is that of one conversation that may be cached.
            markers = [marker for marker in MARKERS if marker not in {each.marker for each in made[-40:]}]
            draw.shuffle(markers)
            made = made[-40:]
        fresh = [Conversation.new(markers.pop(), draw) for _ in range(12)]
        old = [each for each in draw.sample(made, 8) if len(each.messages) < 8]
        made += fresh
        together = [*fresh, *old]
        draw.shuffle(together)
        yield together
        asked += len(together)


def hunt(url: str, model: str, answers: int, at_once: int, seed: int) -> Found:
    """Ask until there are so many answers, `at_once` at a time. Every second turn goes on from what was answered."""
    draw, found = random.Random(seed), Found()  # noqa: S311 (not a secret)
    with httpx.Client(timeout=300, trust_env=False) as client, ThreadPoolExecutor(at_once) as pool:
        for together in _rounds(draw, answers):
            said = pool.map(lambda each: ask(client, url, model, each, found), together)
            for conversation, answer in zip(together, said, strict=True):
                conversation.go_on(answer, draw)
    return found


def reused_by_ollama(service: Service) -> int:
    """Tokens of prompts that its engine took from its caches. A model server says it in each answer."""
    return sum(map(int, _KEPT.findall(service.log.read_text(errors="replace"))))
