"""Images are a function of their content."""

import json
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from devcluster.oci import RuntimeConfig, assemble, cached_layer, repository, write_tree


def tree(path: Path) -> Path:
    (path / "sub").mkdir(parents=True)
    (path / "sub" / "b.py").write_text("b")
    (path / "a.py").write_text("a")
    return path


def test_the_same_files_make_the_same_layer(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_tree(tmp_path / f"{name}.tar", [("app/thing", tree(tmp_path / name))])
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    with tarfile.open(tmp_path / "one.tar") as archive:
        assert archive.getnames() == ["app", "app/thing", "app/thing/a.py", "app/thing/sub", "app/thing/sub/b.py"]
        assert {(member.uid, member.mode) for member in archive if member.isfile()} == {(0, 0o644)}


def test_a_changed_file_changes_the_digest_and_nothing_else_does(tmp_path: Path) -> None:
    source = tree(tmp_path / "source")

    def image(number: int) -> str:
        layer = cached_layer(tmp_path / f"{number}.tar", lambda target: write_tree(target, [("app", source)]))
        return assemble("x/y", [layer], RuntimeConfig(entrypoint=["a"], user="10001")).digest

    first = image(1)
    assert image(2) == first
    (source / "a.py").write_text("changed")
    assert image(3) != first


def test_a_layer_is_made_once_for_all_who_ask_at_the_same_time(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(target: Path) -> None:
        made.append(target)
        time.sleep(0.05)
        write_tree(target, [("app", tree(tmp_path / "t"))])

    with ThreadPoolExecutor(4) as pool:
        layers = list(pool.map(lambda _: cached_layer(tmp_path / "l.tar", make), range(4)))
    assert len(made) == 1
    assert len({layer.digest for layer in layers}) == 1


def test_the_configuration_carries_what_starts_the_container(tmp_path: Path) -> None:
    layer = cached_layer(tmp_path / "l.tar", lambda target: write_tree(target, [("app", tree(tmp_path / "t"))]))
    image = assemble("x/y", [layer], RuntimeConfig(entrypoint=["python"], cmd=["-m"], env={"A": "b"}, user="10001:10001"))
    config = json.loads(image.config)
    assert config["config"] == {"Entrypoint": ["python"], "Cmd": ["-m"], "Env": ["A=b"], "User": "10001:10001"}
    assert config["rootfs"]["diff_ids"] == [layer.digest]
    assert json.loads(image.manifest)["layers"][0]["digest"] == layer.digest


@pytest.mark.parametrize(
    ("name", "path"), [("busybox", "library/busybox"), ("a/b", "a/b"), ("registry.k8s.io/pause", "pause"), ("localhost:5000/a/b", "a/b")]
)
def test_a_name_is_looked_up_without_its_host(name: str, path: str) -> None:
    assert repository(name) == path
