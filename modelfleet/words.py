"""What the commands say, in the words of this command line: they speak as from a checkout, of `make` and of its variables."""

import argparse
import re
from collections.abc import Collection, Mapping
from typing import Any, TextIO

_VARIABLE = r"\b(?P<name>[A-Z][A-Z_]*)(?:=(?P<value>[^\s;,)`]*[^\s;,)`.])|(?=: got ))"
_PAGE = re.compile(r"(?<![\w./-])docs/(?=[\w./-]+\.(?:md|json))")


class Words:
    """From the parser of the commands, which knows them and their options."""

    def __init__(self, parser: argparse.ArgumentParser, commands: Collection[str], program: str) -> None:
        """`program`: directory that has docs/, as the reader reaches it."""
        self._takes_value: Mapping[str, bool] = {
            name.removeprefix("--").replace("-", "_").upper(): action.nargs != 0
            for action in parser._actions
            for name in action.option_strings
            if name.startswith("--")
        }
        longest_first = sorted({"try", *commands}, key=len, reverse=True)
        self._command = re.compile(rf"\bmake ({'|'.join(longest_first)})(?![\w-])")
        self._program = program

    def of(self, text: str) -> str:
        """The text as a user of this command line says it."""
        text = re.sub(_VARIABLE, self._option, self._command.sub(r"modelfleet \1", text))
        return _PAGE.sub(f"{self._program}/docs/", text)

    def _option(self, found: re.Match[str]) -> str:
        name, value = found["name"], found["value"]
        if name not in self._takes_value:
            return found[0]
        option = f"--{name.lower().replace('_', '-')}"
        return f"{option} {value}" if value and self._takes_value[name] else option


class Spoken:
    """A stream that gets these words."""

    def __init__(self, stream: TextIO, words: Words) -> None:
        self._stream, self._words = stream, words

    def write(self, text: str) -> int:
        return self._stream.write(self._words.of(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
