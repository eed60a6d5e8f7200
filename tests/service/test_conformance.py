"""llama.cpp behind the model server, on a real model: the checks that every engine goes through. vLLM's are the proof `vllm`."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from images import embedded
from model_sync import gguf
from tests.service import conformance
from tests.service.conftest import TOOL, start_model_server


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[conformance.Engine]:
    work = tmp_path_factory.mktemp("conformance")
    [weights] = embedded.default_model().values()
    gguf.add("real:1", weights, work / "models", link=True)
    with ExitStack() as stack:
        yield conformance.Engine(
            start_model_server(stack, work / "models", work, "real:1", "/ready", None, **conformance.ONE_PLACE), "real:1"
        )


@pytest.mark.parametrize("check", conformance.ON_ONE)
def test_it(engine: conformance.Engine, check: str) -> None:
    conformance.ON_ONE[check](engine)


def test_it_calls_tools(store: Path, tmp_path: Path) -> None:
    """The real model's template knows none; this one has a script, which calls one."""
    with ExitStack() as stack:
        service = start_model_server(stack, store, tmp_path, "tool:1")
        parameters = {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]}
        conformance.calls_tools(conformance.Engine(service, "tool:1"), TOOL["name"], parameters)


def test_it_drains_at_last(engine: conformance.Engine) -> None:
    conformance.LAST(engine)
