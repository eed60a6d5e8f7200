"""Whether a regular expression is cheap to follow for a grammar, which follows all ways to go on at once.

A part has two numbers: the ways to its next characters, and the ways to pass it by with none. With K ways to go on after a part, there are
`next + empty * K` before it. Passing by costs most: a hundred parts in a row, each of which may be empty, cost llama.cpp a minute.
"""

from dataclasses import dataclass, field

_MOST_WAYS = 500
"""At one place."""
_MOST_EMPTY = 50
"""Parts that may be left out, those counted several times whose repetition may be left out too."""
_LONGEST = 4000
"""Characters of a pattern."""
_DEEPEST = 50
"""Parentheses within each other."""
_MOST_TIMES = 2000
"""Of a part that are looked at; llama.cpp refuses more."""


class _DearError(Exception):
    """Too many ways, characters or levels."""


@dataclass
class _Part:
    """Alternatives, each a sequence of parts, so often; without alternatives, one character."""

    alternatives: list[list["_Part"]] = field(default_factory=list)
    least: int = 1
    most: int | None = 1
    """None: without end."""
    next: int = 1
    empty: int = 0


def is_cheap(pattern: str) -> bool:
    """Whether a server may be asked to hold an answer to it."""
    try:
        if len(pattern) > _LONGEST:
            raise _DearError
        whole, _ = _parse(pattern, 0, 0)
        _bounded(_count(whole), _MOST_EMPTY)
        _follow(whole, 1)
    except _DearError:
        return False
    return True


def _parse(pattern: str, at: int, level: int) -> tuple[_Part, int]:
    """The alternatives from here to their closing parenthesis, or the end."""
    _bounded(level, _DEEPEST)
    part = _Part([[]])
    while at < len(pattern) and (letter := pattern[at]) != ")":
        at += 1
        if letter == "|":
            part.alternatives.append([])
            continue
        if letter == "(":
            each, at = _parse(pattern, at + 2 * (pattern[at : at + 2] == "?:"), level + 1)
            at += 1
        elif letter == "[":
            each, at = _Part(), _after_class(pattern, at)
        else:
            # Anchors count as characters, which changes nothing.
            each, at = _Part(), at + (letter == "\\")
        each.least, each.most, at = _times(pattern, at)
        part.alternatives[-1].append(each)
    return part, at


def _after_class(pattern: str, at: int) -> int:
    at += pattern[at : at + 1] == "^"
    # A bracket that comes first is one of the characters.
    at += pattern[at : at + 1] == "]"
    while at < len(pattern) and pattern[at] != "]":
        at += 2 if pattern[at] == "\\" else 1
    return at + 1


def _times(pattern: str, at: int) -> tuple[int, int | None, int]:
    """How often what stands before this place may come, and the place after that."""
    simple: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
    if (mark := pattern[at : at + 1]) in simple:
        return *simple[mark], at + 1
    if mark != "{" or (end := pattern.find("}", at)) < 0:
        return 1, 1, at
    least, comma, most = pattern[at + 1 : end].partition(",")
    if not all(each.isdecimal() and len(each) < 9 for each in (least or "0", most or "0")):
        return 1, 1, at
    first = min(int(least or "0"), _MOST_TIMES)
    last = first if not comma else min(int(most), _MOST_TIMES) if most else None
    return first, last, end + 1


def _count(part: _Part) -> int:
    """Set the numbers of a part and of all within it, for all of its times. Returns the parts within it that may be left out."""
    following, empty, optional = 1, 0, 0
    if part.alternatives:
        following = 0
        for sequence in part.alternatives:
            ahead, passes = 0, 1
            for each in reversed(sequence):
                optional += _count(each)
                ahead, passes = _bounded(each.next + each.empty * ahead), _bounded(each.empty * passes)
            following, empty = _bounded(following + ahead), _bounded(empty + passes)
    if part.most is None:
        if empty:
            # Without end, and each time perhaps nothing.
            raise _DearError
        part.next, part.empty = following, int(not part.least)
        return optional + part.empty
    part.next, part.empty = 0, 1
    for time in range(part.most):
        # From the last time to the first.
        before = part.next, part.empty
        part.next, part.empty = following + empty * part.next, empty * part.empty + (time < part.most - part.least)
        _bounded(part.next + part.empty)
        if (part.next, part.empty) == before:
            break
    return (optional * part.most if empty else optional) + (part.empty > 0)


def _follow(part: _Part, after: int) -> None:
    """See that there are not too many ways at any place within a part, with so many after it."""
    here = _bounded(part.next + part.empty * after)
    if part.most != 1:
        # What comes after one time is the next time, or what comes after all of them.
        after += here
    for sequence in part.alternatives:
        ahead = after
        for each in reversed(sequence):
            _follow(each, ahead)
            ahead = _bounded(each.next + each.empty * ahead)


def _bounded(count: int, limit: int = _MOST_WAYS) -> int:
    if count > limit:
        raise _DearError
    return count
