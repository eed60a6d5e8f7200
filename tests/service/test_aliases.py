"""Other names for models, at a running API server: they are pointed elsewhere without a restart."""

import json
import time
from pathlib import Path

import httpx
import pytest

from tests.service.conftest import KEY, SCRIPT, ApiServerFactory
from tests.service.processes import Service

HEADERS = {"Authorization": f"Bearer {KEY}"}
QUESTION = [{"role": "user", "content": "Say it."}]


def point(file: Path, **aliases: dict[str, object]) -> None:
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps(aliases))
    fresh.replace(file)


@pytest.fixture
def gateway(api_server: ApiServerFactory, ollama: Service, tmp_path: Path) -> Service:
    point(tmp_path / "aliases", coder={"model": "tiny:1"})
    routes: dict[str, dict[str, object]] = {
        name: {"url": ollama.url, "model": name, "engine": "ollama", "context_length": 2048} for name in ("tiny:1", "embed:1")
    }
    return api_server(routes, ALIASES_FILE=str(tmp_path / "aliases"))


def test_an_alias_is_a_model_on_every_api_and_changes_without_a_restart(gateway: Service, tmp_path: Path) -> None:
    with httpx.Client(base_url=gateway.url, headers=HEADERS, timeout=60) as client:
        asked = client.post("/v1/chat/completions", json={"model": "coder", "messages": QUESTION})
        assert asked.json()["choices"][0]["message"]["content"] == SCRIPT
        assert asked.json()["model"] == "tiny:1"
        asked = client.post("/api/chat", json={"model": "coder", "messages": QUESTION, "stream": False})
        assert (asked.status_code, asked.json()["model"]) == (200, "tiny:1")
        listed = {each["id"]: each for each in client.get("/v1/models").json()["data"]}
        assert listed["coder"] == {**listed["tiny:1"], "id": "coder", "root": "tiny:1"}
        assert client.get("/v1/models/coder").json() == listed["coder"]
        assert {"coder", "tiny:1", "embed:1"} == {each["name"] for each in client.get("/api/tags").json()["models"]}
        assert client.post("/api/show", json={"model": "coder"}).status_code == 200
        unknown = client.post("/v1/chat/completions", json={"model": "writer", "messages": QUESTION})
        assert unknown.status_code == 404
        assert "want one of tiny:1, embed:1, coder;" in unknown.json()["error"]["message"]

        point(tmp_path / "aliases", writer={"model": "tiny:1"}, coder={"model": "embed:1"})
        time.sleep(1.1)
        assert client.post("/v1/chat/completions", json={"model": "writer", "messages": QUESTION}).status_code == 200
        assert client.post("/v1/embeddings", json={"model": "coder", "input": "x"}).json()["model"] == "embed:1"
