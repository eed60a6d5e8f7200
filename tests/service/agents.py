"""Agents at work: a thread for each, until the block ends."""

import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import openai

BROKEN_OFF = "streams that were asked for again"
"""What `counts` has them as."""


class AtWork(ABC):
    """Clients of OpenAI's package, with its own retries."""

    def __init__(self, url: str, key: str, agents: int) -> None:
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key=key)
        self.ended = threading.Event()
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self._agents = agents

    @abstractmethod
    def work(self, number: int) -> None:
        """What one of them does until `ended` is set."""

    def streamed(self, given: Mapping[str, Any]) -> str:
        """The answer's text. A stream that breaks off is asked for again, as often as the package asks again for what is no stream: it
        cannot do so itself, since it has handed on a part."""
        for left in reversed(range(1 + openai.DEFAULT_MAX_RETRIES)):
            try:
                with self.client.chat.completions.create(**given, stream=True) as chunks:
                    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            except openai.APIStatusError:
                # The package has asked again already.
                raise
            except openai.APIError as error:
                # Of a stream that had begun: the event has a type and a message.
                if not error.body or not left:
                    raise
                self.counts[BROKEN_OFF] += 1
        raise AssertionError

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(self._agents)
        self._works = [self._pool.submit(self.work, number) for number in range(self._agents)]
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self._pool.shutdown()
        self.client.close()
        for work in self._works:
            work.result()
