"""Tests of two processes at once, as two workers are, are never given the same port."""

import random
import subprocess
import sys

from tests.service.processes import ROOT, free_port


def test_a_port_is_given_once() -> None:
    state = random.getstate()
    try:
        random.seed(7)
        first = free_port()
        random.seed(7)
        assert free_port() != first
    finally:
        random.setstate(state)


def test_a_process_is_not_given_the_port_of_another() -> None:
    draw = "import random; from tests.service.processes import free_port; random.seed(7); print(free_port(), flush=True)"
    argv = [sys.executable, "-c", f"{draw}; input()"]
    with subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        given = first.stdout.readline()
        second = subprocess.run([sys.executable, "-c", draw], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30)
        assert given.strip().isdigit()
        assert second.stdout != given
        first.communicate("\n", timeout=30)
