"""Models of several files, delivered by the real writer: from a hub, from a list, from an artifact in a real registry."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from devcluster.pki import Authority
from model_server.store import find_gguf, find_tree
from model_sync import store
from model_sync.__main__ import main
from tests import tiny_gguf
from tests.service import hub as hubs
from tests.service import origins, registries
from tests.service.conftest import start_model_server
from tests.service.test_model_sync import names, publish
from tests.service.test_private_sources import Desk
from tests.unit.test_model_files import FILES, TAKEN, artifact, safetensors

BIG = {name: safetensors(name.encode() * 4000) if name.endswith(".safetensors") else content for name, content in FILES.items()}
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
TOKEN = "hf_a-token-that-nobody-may-see"


def model(source: str, **fields: Any) -> dict[str, Any]:
    common = {"digest": "", "size": 1 << 20, "context_length": 2048, "quantization": "", "replicas": -1, "keep_alive": "-1"}
    return {"name": "tree:1", "source": source, "format": "safetensors", **common, **fields}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"), "private")


@pytest.fixture
def desk(tmp_path: Path, authority: Authority) -> Desk:
    return Desk(tmp_path, authority)


@pytest.fixture
def hub(authority: Authority) -> Iterator[hubs.Hub]:
    with hubs.serving(dict(BIG), authority) as found:
        yield found


def at(hub: hubs.Hub, name: str = "") -> str:
    return f"huggingface://{hub.addresses[0]}/team/model{f'/{name}' if name else ''}:{hubs.COMMIT}"


def test_a_repository_is_delivered_once_and_no_more_of_it_than_is_wanted(hub: hubs.Hub, desk: Desk, tmp_path: Path) -> None:
    for _ in range(2):
        assert desk.publish(model(at(hub))) == 0, desk.said
    assert hub.sent == {name: len(BIG[name]) for name in TAKEN}
    found, _ = find_tree(desk.shared, "tree:1", tmp_path / "weights")
    assert {path.name: path.read_bytes() for path in found.iterdir()} == {name: BIG[name] for name in TAKEN}


def test_a_repository_that_breaks_off_is_resumed_file_by_file(hub: hubs.Hub, desk: Desk) -> None:
    hub.cut_after = 70_000
    assert desk.publish(model(at(hub))) == 0, desk.said
    assert {name: hub.sent[name] for name in (FIRST, SECOND)} == {name: len(BIG[name]) for name in (FIRST, SECOND)}


def test_a_run_that_ended_early_is_gone_on_with(hub: hubs.Hub, desk: Desk) -> None:
    hub.lies[SECOND] = BIG[SECOND][:-1]
    assert desk.publish(model(at(hub))) == 1
    assert f"/{SECOND}: got {len(BIG[SECOND]) - 1} bytes, want {len(BIG[SECOND])}; the source is damaged or lies" in desk.said
    assert desk.names == []
    del hub.lies[SECOND]
    assert desk.publish(model(at(hub))) == 0, desk.said
    assert hub.sent[FIRST] == len(BIG[FIRST]), "what the first run had taken is not fetched again"


def test_the_token_goes_to_the_hub_and_not_where_it_redirects_to(hub: hubs.Hub, desk: Desk) -> None:
    hub.token = TOKEN
    assert desk.publish(model(at(hub))) == 1
    assert f"models.tree:1.source: got 401 from {hub.addresses[0]}, want leave to read" in desk.said
    assert desk.publish(model(at(hub)), {hub.addresses[0]: TOKEN}) == 0, desk.said
    assert hub.credentials == {"hub": {None, f"Bearer {TOKEN}"}, "store": {None}}


def test_a_hub_that_has_another_revision_is_refused(hub: hubs.Hub, desk: Desk) -> None:
    assert desk.publish(model(at(hub))) == 0, desk.said
    hub.commit = "f" * 40
    assert desk.publish(model(at(hub))) == 1
    assert f"got commit {'f' * 40}, want {hubs.COMMIT}; the hub has another revision" in desk.said
    assert desk.names == ["tree:1"], "what is served stays"


@pytest.mark.parametrize("name", [SECOND, "config.json"])
def test_a_file_with_another_content_is_refused_by_name(hub: hubs.Hub, desk: Desk, name: str) -> None:
    hub.lies[name] = bytes([*BIG[name][:-1], BIG[name][-1] ^ 1])
    assert desk.publish(model(at(hub))) == 1
    assert f"/team/model/resolve/{hubs.COMMIT}/{name}: got content " in desk.said
    assert desk.names == []


def test_a_part_that_the_hub_lacks_is_named_before_the_weights_are_fetched(hub: hubs.Hub, desk: Desk) -> None:
    del hub.files[SECOND]
    assert desk.publish(model(at(hub))) == 1
    assert f"got no {SECOND} beside it, want every file that it names" in desk.said
    assert FIRST not in hub.sent


def test_a_digest_holds_all_files_whatever_the_hub_says(hub: hubs.Hub, desk: Desk) -> None:
    assert desk.publish(model(at(hub))) == 0
    digest = store.file_digest((desk.shared / store.manifest_path("tree:1")).read_bytes())
    assert desk.publish(model(at(hub), digest=digest)) == 0, desk.said
    hub.files["tokenizer_config.json"] = b"{}"
    assert desk.publish(model(at(hub), digest=digest)) == 1
    assert f"want {digest}; do not use it, or correct models.<name>.digest" in desk.said


def test_a_split_model_of_a_hub_is_taken_whole(desk: Desk, authority: Authority, tmp_path: Path) -> None:
    parts = tiny_gguf.make_split(tmp_path / "part", "from a hub")
    files = {f"q4/{path.name}": path.read_bytes() for path in parts} | {"other.gguf": b"x" * 1000}
    with hubs.serving(files, authority) as hub:
        wanted = model(at(hub, f"q4/{parts[0].name}"), format="gguf", size=1 << 22)
        assert desk.publish(wanted) == 0, desk.said
        assert "other.gguf" not in hub.sent
        del hub.files[f"q4/{parts[1].name}"]
        assert desk.publish(wanted) == 1
        assert f"got no q4/{parts[1].name} at that commit, want it; correct the source" in desk.said
    first, _ = find_gguf(desk.shared, "tree:1", tmp_path / "weights")
    assert [path.read_bytes() for path in sorted(first.parent.iterdir())] == [path.read_bytes() for path in parts]


def test_llama_cpp_answers_with_a_split_model_from_a_copy_of_its_own(tmp_path: Path) -> None:
    parts = tiny_gguf.make_split(tmp_path / "part", "In three parts.", part_tensors=4)
    assert len(parts) == 3
    content = {path.name: path.read_bytes() for path in parts}
    with origins.serving(listed(content)) as origin:
        origin.paths = {f"/m/{name}": each for name, each in content.items()}
        source = f"{origin.url.rpartition('/')[0]}/m/SHA256SUMS"
        wanted = model(source, digest=store.file_digest(origin.content), format="gguf", size=1 << 22)
        assert publish(tmp_path / "shared", wanted) == (0, "")
    assert main(["copy", str(tmp_path / "shared"), str(tmp_path / "hot"), "tree:1"]) == 0
    with ExitStack() as stack:
        server = start_model_server(stack, tmp_path / "hot", tmp_path, "tree:1", WEIGHTS_DIR=str(tmp_path / "weights"))
        body = {"model": "tree:1", "messages": [{"role": "user", "content": "Say it."}], "max_tokens": 64, "temperature": 0}
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()
    assert answer["choices"][0]["message"]["content"] == "In three parts."


def listed(paths: dict[str, bytes]) -> bytes:
    return "".join(f"{hashlib.sha256(content).hexdigest()}  {path}\n" for path, content in paths.items()).encode()


def test_a_list_leads_to_its_files_and_each_is_fetched_once(tmp_path: Path) -> None:
    content = {name: BIG[name] for name in TAKEN}
    with origins.serving(listed(content)) as origin:
        origin.paths = {f"/m/{name}": each for name, each in content.items()}
        origin.cut_after = len(BIG[FIRST]) // 2
        source = f"{origin.url.rpartition('/')[0]}/m/SHA256SUMS"
        wanted = model(source, digest=store.file_digest(origin.content))
        for _ in range(2):
            assert publish(tmp_path / "shared", wanted) == (0, "")
        assert origin.sent == sum(map(len, content.values())) + 2 * len(origin.content)
        origin.content += b"\n"
        status, error = publish(tmp_path / "shared", wanted)
    assert (status, names(tmp_path / "shared")) == (1, ["tree:1"])
    assert f"{source}: got manifest {store.file_digest(origin.content)}, want {wanted['digest']}" in error


def test_an_artifact_of_a_registry_is_delivered(tmp_path: Path) -> None:
    work = tmp_path / "work"
    document = artifact({name: BIG[name] for name in TAKEN}, work)
    with registries.serving(work / "registry") as address, httpx.Client(trust_env=False) as client:
        kind = "application/vnd.oci.image.manifest.v1+json"
        tagged = json.dumps({"mediaType": kind, **json.loads(document)}).encode()
        (work / "manifest").write_bytes(tagged)
        origins.upload(client, f"http://{address}", "team/tree", "1", work, Path("manifest"), kind)
        wanted = model(f"registry+http://{address}/team/tree:1", digest=store.file_digest(tagged))
        for _ in range(2):
            assert publish(tmp_path / "shared", wanted) == (0, "")
    found, _ = find_tree(tmp_path / "shared", "tree:1", tmp_path / "weights")
    assert {path.name: path.read_bytes() for path in found.iterdir()} == {name: BIG[name] for name in TAKEN}
