"""What chat templates can do in llama.cpp, the engine that runs those of model files."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests import tiny_gguf
from tests.service.processes import ROOT, free_port

MARK = "a-secret-of-the-pod"


def rendered(template: str, work: Path) -> str | None:
    """The prompt that the engine makes of one message; None where it does not even start with this template."""
    path, port = tiny_gguf.make(work / "m.gguf", "Hello.", template=template), free_port()
    argv = [sys.executable, str(ROOT / "images" / "ollama" / "llama_server.py"), "--model", str(path), "--port", str(port), "-c", "512"]
    environment = {"PATH": os.environ["PATH"], "SECRET": MARK}
    url, body = f"http://127.0.0.1:{port}/apply-template", {"messages": [{"role": "user", "content": "hi"}]}
    with subprocess.Popen(argv, cwd=work, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as engine:
        deadline = time.monotonic() + 60
        try:
            while engine.poll() is None:
                assert time.monotonic() < deadline
                try:
                    answer = httpx.post(url, json=body, timeout=20, trust_env=False)
                except httpx.HTTPError:
                    time.sleep(0.05)
                    continue
                if answer.status_code != 503:
                    return json.dumps(answer.json())
            return None
        finally:
            engine.kill()


@pytest.mark.parametrize(
    "template",
    [
        "{% include 'secret' %}",
        "{% import 'secret' as x %}{{ x }}",
        "{% from 'secret' import x %}{{ x }}",
        "{% extends 'secret' %}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.environ }}",
        "{{ environ }}{{ env }}{{ self }}{{ config }}{{ request }}{{ getenv('SECRET') }}",
        "{{ open('secret').read() }}",
        "{{ lipsum.__globals__['os'].popen('cat secret').read() }}",
    ],
)
def test_llama_cpp_renders_no_template_that_reaches_out(template: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(MARK)
    assert MARK not in (rendered(template, tmp_path) or "")


def test_an_honest_template_is_rendered(tmp_path: Path) -> None:
    assert "hi" in (rendered(tiny_gguf.CHATML, tmp_path) or "")
