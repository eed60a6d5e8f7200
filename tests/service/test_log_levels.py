"""Each service says no less and no more than its variable asks for."""

import time
from pathlib import Path

import pytest

from components.contract import LOG_LEVELS
from tests.service.conftest import ApiServerFactory, ModelServerFactory
from tests.service.processes import refused
from tests.service.test_api_server import ask, route

MODULES = {
    "api-server": "api_server",
    "activator": "api_server.activator",
    "model-server": "model_server",
    "cache-keeper": "model_server.tier.keeper",
    "ollama-agent": "ollama_agent",
    "metrics-exporter": "metrics_exporter",
    "image-verifier": "image_verifier",
}


@pytest.mark.parametrize("container", LOG_LEVELS)
def test_a_level_that_is_none_is_refused_by_name(container: str) -> None:
    status, said = refused(MODULES[container], {LOG_LEVELS[container]: "loud"})
    assert status == 2
    assert f"{LOG_LEVELS[container]}: got 'loud', want" in said


@pytest.mark.parametrize(("level", "lines", "named"), [("warning", 0, False), ("info", 1, False), ("debug", 1, True)])
def test_the_gateway_writes_a_line_for_each_request_from_info_on_and_names_its_server_with_debug(
    api_server: ApiServerFactory, model_server: ModelServerFactory, tmp_path: Path, level: str, lines: int, named: bool
) -> None:
    upstream = model_server("tiny:1")
    api = api_server({"a": route(upstream, "tiny:1")}, LOG_LEVEL=level)
    assert ask(api, "a").status_code == 200
    # The line is written when the client has its answer already.
    time.sleep(1)
    log = (tmp_path / "api-server.log").read_text()
    assert log.count(" status 200 ") == lines
    assert (f"goes to {upstream.url}" in log) is named
