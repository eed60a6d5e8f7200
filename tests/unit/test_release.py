"""What a release writes into a stack's file, and what it refuses before it builds; the builds are in tests/service/test_image_builds.py."""

from pathlib import Path

import pytest
import yaml

from components import RuntimeImagesArgs
from infra import ROOT
from infra.preparation import images
from infra.program.settings.section import SettingsError

REFS = {"ollama": f"registry.example.com/fleet/ollama@sha256:{'1' * 64}", "models": f"registry.example.com/fleet/models@sha256:{'2' * 64}"}
STACK = """\
# Ours.
config:
  modelfleet:images:
    builder: prebuilt
    registry: registry.example.com/fleet
    trust:
      publicKeys: |
        -----BEGIN PUBLIC KEY-----
        abc
        -----END PUBLIC KEY-----
    refs:
      ollama: registry.example.com/fleet/ollama@sha256:0
  # A comment of theirs.
  modelfleet:apiKeys:
    secure: v1:abc
"""


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[RuntimeImagesArgs]:
    """What was built; each time with the same result."""
    asked: list[RuntimeImagesArgs] = []
    monkeypatch.setattr(images, "build", lambda args, _: asked.append(args) or REFS)
    return asked


def test_the_stack_takes_what_was_built_and_is_otherwise_as_it_was(
    tmp_path: Path, built: list[RuntimeImagesArgs], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "Pulumi.fleet.yaml"
    file.write_text(STACK)
    assert images.main(["fleet"], tmp_path) == 0
    assert capsys.readouterr().out.split() == list(REFS.values())
    assert [(args.builder, args.registry, args.images) for args in built] == [("docker-build", "registry.example.com/fleet", None)]
    before, after = yaml.safe_load(STACK)["config"], yaml.safe_load(file.read_text())["config"]
    assert after == {**before, "modelfleet:images": {**before["modelfleet:images"], "refs": REFS}}
    assert file.read_text().startswith("# Ours.\n")
    assert "        -----BEGIN PUBLIC KEY-----\n        abc\n" in file.read_text()
    assert "  # A comment of theirs.\n  modelfleet:apiKeys:\n    secure: v1:abc\n" in file.read_text()
    # The next release is the same file.
    first = file.read_text()
    assert images.main(["fleet"], tmp_path) == 0
    assert file.read_text() == first


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("config: {}\n", "modelfleet:images.registry: got nothing, want the prefix of the repositories to push to; set it"),
        (
            "config:\n  modelfleet:images:\n    registry: r.example.com\n  modelfleet:governance:\n    production: true\n",
            "modelfleet:governance.production: got true, and no digest of debian, nvidia/cuda, ollama/ollama, python in images/pins.toml, want",
        ),
    ],
)
def test_what_cannot_be_built_is_one_line_and_changes_nothing(
    text: str, line: str, tmp_path: Path, built: list[RuntimeImagesArgs], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "Pulumi.fleet.yaml").write_text(text)
    assert images.main(["fleet"], tmp_path) == 1
    assert capsys.readouterr().err.startswith(f"error: {line}")
    assert (built, (tmp_path / "Pulumi.fleet.yaml").read_text()) == ([], text)
    assert images.main(["absent"], tmp_path) == 1


def test_a_file_of_another_form_is_refused_and_not_guessed_at() -> None:
    with pytest.raises(SettingsError, match=r"^modelfleet:images: got a section in another form than pulumi config writes, want that"):
        images.with_refs("config: {'modelfleet:images': {registry: r.example.com}}\n", REFS)
    for stack in ("dev", "prod"):
        text = (ROOT / f"Pulumi.{stack}.yaml").read_text()
        if "modelfleet:images" in text:
            assert yaml.safe_load(images.with_refs(text, REFS))["config"]["modelfleet:images"]["refs"] == REFS
