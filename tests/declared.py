"""A PATH with the programs of declared packages and no other: what a step calls on it, a new machine has too.

Declared are the packages of `devcluster.packages`, those that README asks for, and every one that Debian marks as required or essential;
with each, what it depends on. What a package only recommends is not there: `make up` does not install it.
"""

import os
import re
import subprocess
from pathlib import Path

from devcluster.packages import COMPILE, CRIO, RUN
from tests.proofs.ways import readme_packages

_PROGRAMS = re.compile(r"/(usr/)?(local/)?s?bin/[^/]+")


def path(directory: Path) -> str:
    """The PATH: one directory of links, made below `directory`."""
    links = directory / "declared-programs"
    if not links.exists():
        links.mkdir()
        for program in _programs(_closure({*RUN, *COMPILE, *CRIO}, set(readme_packages()))):
            if not (links / program.name).exists():
                (links / program.name).symlink_to(program)
        _follow_alternatives(links)
    return str(links)


def _query(form: str) -> list[list[str]]:
    argv = ["dpkg-query", "--show", f"--showformat={form}"]
    return [line.split("\t") for line in subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()]


def _closure(names: set[str], perhaps: set[str]) -> set[str]:
    """Installed packages: `names`, `perhaps` where they are there, required ones, and what all of them depend on.

    Of alternatives, those count that are installed. Raises AssertionError when one of `names` is not.
    """
    rows = _query("${db:Status-Status}\t${Package}\t${Essential}\t${Priority}\t${Provides}\t${Pre-Depends}, ${Depends}\n")
    rows = [row for row in rows if row[0] == "installed"]
    needs = {row[1]: _names(row[5]) for row in rows}
    providers: dict[str, set[str]] = {}
    for row in rows:
        for provided in [row[1], *_names(row[4])]:
            providers.setdefault(provided, set()).add(row[1])
    found: set[str] = set()
    todo = {*names, *(row[1] for row in rows if row[2] == "yes" or row[3] == "required")}
    if absent := todo - needs.keys():
        raise AssertionError(f"packages: got none of {', '.join(sorted(absent))}, want them; run python -m devcluster.packages --yes")
    todo |= perhaps & needs.keys()
    while todo:
        name = todo.pop()
        found.add(name)
        todo |= {each for need in needs[name] for each in providers.get(need, ())} - found
    return found


def _names(relations: str) -> list[str]:
    """Package names of a dependency field, without versions and architectures."""
    return re.findall(r"(?:^|[,|])\s*([a-z0-9][a-z0-9+.-]*)", relations)


def _programs(packages: set[str]) -> list[Path]:
    argv = ["dpkg-query", "--listfiles", *sorted(packages)]
    listed = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
    return [Path(line) for line in listed if _PROGRAMS.fullmatch(line) and os.access(line, os.X_OK)]


def _follow_alternatives(links: Path) -> None:
    """Names such as `iptables` belong to no package: they lead, through /etc/alternatives, to a program of one."""
    programs = {Path(os.path.realpath(link)) for link in links.iterdir()}
    for folder in (Path("/usr/bin"), Path("/usr/sbin")):
        for program in folder.iterdir():
            if program.is_symlink() and program.readlink().is_relative_to("/etc/alternatives"):
                real = Path(os.path.realpath(program))
                if real in programs and not (links / program.name).exists():
                    (links / program.name).symlink_to(program)
