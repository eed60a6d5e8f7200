"""The real engine tells the program which values are encrypted, and the program holds it to that."""

import json
from pathlib import Path

import pytest

from infra.cli import CliError, PulumiCli
from infra.preview import stack_config

VALUES = {"apiKeys": json.dumps(["a-key-of-sufficient-length"]), "cachePassword": "sufficientlylong1"}


@pytest.fixture
def cli(tmp_path: Path) -> PulumiCli:
    """The prod stack for a cluster that no kubeconfig knows: it ends at the latest when it looks for that."""
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text("apiVersion: v1\nkind: Config\ncontexts: []\n")
    cli = PulumiCli(stack="prod", state_dir=tmp_path / "state", env={"KUBECONFIG": str(kubeconfig), "HOME": str(tmp_path)})
    cli.ensure_stack()
    return cli


def refusal(cli: PulumiCli) -> str:
    with pytest.raises(CliError) as error:
        cli.run("up", "--yes", "--skip-preview")
    assert "Traceback" not in str(error.value)
    assert not [value for value in VALUES.values() if value in str(error.value)]
    return str(error.value)


def test_production_takes_secrets_encrypted_only(cli: PulumiCli) -> None:
    config = stack_config("prod") | {"modelfleet:cluster": {"context": "elsewhere", "identity": "3f1c"}}
    cli.write_config(config | {f"modelfleet:{name}": value for name, value in VALUES.items()})
    text = refusal(cli)
    for name in VALUES:
        assert f"modelfleet:{name}: got plain text, want it encrypted with governance.production" in text
    cli.write_config(config)
    for name, value in VALUES.items():
        cli.run("config", "set", "--secret", f"modelfleet:{name}", stdin=value)
    text = refusal(cli)
    assert "plain text" not in text
    assert "modelfleet:cluster.context: got 'elsewhere'" in text
