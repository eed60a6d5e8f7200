"""Both stacks as the real engine and provider render them, compared with what was reviewed.

After a wanted change: UPDATE_GOLDEN=1 make test TIER=golden, and look at the diff.
"""

import os
import shutil
from pathlib import Path

import pytest

from infra.analysis import preview

GOLDEN = Path(__file__).parent


@pytest.fixture(scope="module", params=preview.STACKS)
def rendered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    stack = request.param
    target = tmp_path_factory.mktemp(stack) / "out"
    target.mkdir()
    preview.render(stack, target, tmp_path_factory.mktemp("work"))
    preview.tidy(target)
    if os.environ.get("UPDATE_GOLDEN"):
        shutil.rmtree(GOLDEN / stack, ignore_errors=True)
        (GOLDEN / stack).mkdir()
        for path in target.glob("*.yaml"):
            (GOLDEN / stack / path.name).write_text(preview.normalized(path.read_text()))
    return stack, target


def test_the_rendering_is_the_reviewed_one(rendered: tuple[str, Path]) -> None:
    stack, target = rendered
    found = {path.name: preview.normalized(path.read_text()) for path in target.glob("*.yaml")}
    wanted = {path.name: path.read_text() for path in (GOLDEN / stack).glob("*.yaml")}
    assert found.keys() == wanted.keys()
    for name, text in wanted.items():
        assert found[name] == text, f"{stack}/{name}"


def test_no_secret_is_rendered(rendered: tuple[str, Path]) -> None:
    _, target = rendered
    for path in target.glob("*.yaml"):
        assert "masked-in-the-rendering" not in path.read_text()
        assert "maskedintherendering" not in path.read_text()
