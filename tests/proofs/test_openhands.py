"""The OpenHands SDK with its defaults, on both engines, streamed and not: a conversation with tools whose window fills, again and again,
goes on. 8 minutes.

Needs Python 3.12 or newer for the SDK: `python3.12` or `python3.13` on the PATH or of pyenv, or as PYTHON312.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from model_sync import gguf
from tests import tiny_gguf
from tests.proofs import newer_python
from tests.proofs.records import ROOT, Proof
from tests.service import ollama as ollama_process
from tests.service.conftest import KEY, start_api_server, start_model_server
from tests.service.processes import Service

PROOF = Proof("openhands", guards=("api_server", "model_server", "tests/proofs/openhands.lock", "tests/tiny_gguf.py", "requirements.lock"))
CONTEXT = 32768
"""The SDK's own prompt and tools take a third of it, where a token is a byte."""
TURNS, WORDS = 9, 600
FINISH = '<tool_call>\n{"name": "finish", "arguments": {"message": "It is done."}}\n</tool_call>'
CLIENT = """
import json, sys, tempfile
from pydantic import SecretStr
from openhands.sdk import LLM, Agent, Conversation, LLMSummarizingCondenser
given = json.loads(sys.stdin.read())
def llm(usage, **fields):
    return LLM(model="openai/" + given[usage], base_url=given["url"], api_key=SecretStr(given["key"]), usage_id=usage, **fields)
condenser = LLMSummarizingCondenser(llm=llm("condenser"))
agent = Agent(llm=llm("agent", stream=given["stream"]), tools=[], condenser=condenser)
# Without somebody who takes the parts, the SDK asks for no stream.
parts = []
taking = [parts.append] if given["stream"] else None
conversation = Conversation(agent=agent, workspace=tempfile.mkdtemp(), visualizer=None, token_callbacks=taking)
for number in range(given["turns"]):
    conversation.send_message(f"Turn {number}. " + "word " * given["words"])
    conversation.run()
    assert conversation.state.execution_status.value == "finished", conversation.state.execution_status
print(json.dumps([len(parts), [type(event).__name__ for event in conversation.state.events]]))
"""


@pytest.fixture(scope="session")
def sdk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a virtual environment with the SDK."""
    uv, target = Path(sys.executable).parent / "uv", tmp_path_factory.mktemp("sdk") / "venv"
    subprocess.run([uv, "venv", "-q", "--python", newer_python.find("3.12", "3.13"), target], check=True)
    lock = ROOT / "tests" / "proofs" / "openhands.lock"
    subprocess.run([uv, "pip", "install", "-q", "--python", target / "bin" / "python", "--require-hashes", "-r", lock], check=True)
    return target / "bin" / "python"


@pytest.fixture(params=["ollama", "model-server"])
def api(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    """A gateway with two models: one that calls the tool `finish`, and one that writes summaries."""
    store = tmp_path / "models"
    for name, script in (("agent:1", FINISH), ("condenser:1", "So far all went well.")):
        gguf.add(name, tiny_gguf.make(tmp_path / "model.gguf", script, context=CONTEXT), store)
    with ExitStack() as stack:
        if request.param == "ollama":
            program = ollama_process.install(tmp_path)
            ollama = stack.enter_context(ollama_process.running(program, store, tmp_path, OLLAMA_CONTEXT_LENGTH=str(CONTEXT)))
            route = {"url": ollama.url, "engine": "ollama", "context_length": CONTEXT}
            routes: dict[str, dict[str, object]] = {name: {**route, "model": name} for name in ("agent:1", "condenser:1")}
            for name in routes:
                ollama_process.load(ollama, name)
        else:
            routes = {
                name: {"url": start_model_server(stack, store, tmp_path, name, CONTEXT_LENGTH=str(CONTEXT)).url, "model": name}
                for name in ("agent:1", "condenser:1")
            }
        yield start_api_server(stack, tmp_path, routes)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_conversation_whose_window_fills_goes_on(
    api: Service, sdk: Path, stream: bool, request: pytest.FixtureRequest, figures: dict[str, Any]
) -> None:
    given = {"url": f"{api.url}/v1", "key": KEY, "agent": "agent:1", "condenser": "condenser:1", "turns": TURNS, "words": WORDS}
    given |= {"stream": stream}
    # The SDK's library asks the internet for prices.
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "OPENHANDS_SUPPRESS_BANNER": "1"}
    done = subprocess.run([sdk, "-c", CLIENT], input=json.dumps(given), env=environment, capture_output=True, text=True, timeout=1000)
    assert done.returncode == 0, done.stderr[-4000:]
    parts: int
    kinds: list[str]
    parts, kinds = json.loads(done.stdout.splitlines()[-1])
    assert (parts > TURNS) is stream
    assert kinds.count("ActionEvent") == kinds.count("ObservationEvent") == TURNS, "each turn is a call of a tool, and its result"
    assert kinds.count("Condensation") >= 2
    assert "ConversationErrorEvent" not in kinds
    figures[request.node.callspec.id] = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
