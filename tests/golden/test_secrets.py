"""The real engine tells the program which values are encrypted, and the program holds it to that."""

import json
from pathlib import Path

import pytest

from infra.engine.cli import PulumiCli
from infra.engine.errors import CliError
from infra.lifecycle import deployment as lifecycle
from infra.lifecycle import keys
from infra.program.settings.committed import stack_config
from infra.program.settings.section import SettingsError

AUTH = json.dumps({"auths": {"registry.example.com": {"username": "fleet", "password": "of-the-registry"}}})
KEY = "a-key-of-sufficient-length"
VALUES = {"apiKeys": json.dumps({"alice": {"key": KEY}}), "cachePassword": "sufficientlylong1", "registryAuth": AUTH}


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
        cli.up()
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
    # The next thing that production asks for, before any cluster is looked at.
    assert "in images/pins.toml, want each by digest in production; run make pins" in text


def test_the_logins_of_a_file_are_kept_encrypted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    committed = stack_config("dev") | {"modelfleet:verifierTls": {"secure": "v1:for-another-key"}}
    monkeypatch.setattr(lifecycle, "stack_config", lambda _: dict(committed))
    monkeypatch.setattr(lifecycle, "cluster_identity", lambda *_: "3f1c")
    deployment = lifecycle.Deployment(stack="dev", context="elsewhere", kubeconfig=str(tmp_path / "none"), state_dir=tmp_path / "state")
    (tmp_path / "auth.json").write_text(AUTH)
    deployment.take_registry_auth({}, str(tmp_path / "auth.json"))
    deployment.configure({})
    config = deployment.cli.read_config()
    assert set(config["modelfleet:registryAuth"]) == {"secure"}
    assert "modelfleet:verifierTls" not in config, "it is for the key of the committed file"
    assert "of-the-registry" not in deployment.cli.config_file.read_text()
    assert deployment.cli.run("config", "get", "modelfleet:registryAuth").strip() == AUTH
    with pytest.raises(SettingsError, match=r"PULL_AUTH: got '.*nowhere' \(No such file or directory\), want a dockerconfigjson; see"):
        deployment.take_registry_auth({}, str(tmp_path / "nowhere"))


def test_keys_of_clients_may_be_encrypted_one_by_one(cli: PulumiCli) -> None:
    """So that names and owners can be read in the file."""
    cli.write_config(stack_config("prod") | {"modelfleet:cluster": {"context": "elsewhere", "identity": "3f1c"}})
    cli.run("config", "set", "--secret", "modelfleet:cachePassword", stdin=VALUES["cachePassword"])
    cli.run("config", "set", "--secret", "--path", 'modelfleet:apiKeys["alice"]["key"]', stdin=KEY)
    cli.run("config", "set", "--path", 'modelfleet:apiKeys["alice"]["owner"]', "Alice")
    assert "owner: Alice" in cli.config_file.read_text()
    text = refusal(cli)
    assert KEY not in text
    assert "modelfleet:apiKeys" not in text
    assert "in images/pins.toml, want each by digest in production; run make pins" in text


@pytest.mark.parametrize("openly", [True, False])
def test_make_key_writes_the_encrypted_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], openly: bool
) -> None:
    committed = stack_config("dev") | {"modelfleet:apiKeys": {"bob": {"key": {"secure": "v1:for-another-key"}, "owner": "Bob"}}}
    monkeypatch.setattr(lifecycle, "stack_config", lambda _: dict(committed))
    monkeypatch.setattr(lifecycle, "cluster_identity", lambda *_: "3f1c")
    monkeypatch.setattr(keys, "_touch", lambda _: "")
    monkeypatch.setattr(PulumiCli, "update", lambda *_: None)
    deployment = lifecycle.Deployment(stack="dev", context="elsewhere", kubeconfig=str(tmp_path / "none"), state_dir=tmp_path / "state")
    deployment.configure({})
    first, cli = {"first": {"key": deployment.key()}}, deployment.cli
    assert json.loads(cli.run("config", "get", "modelfleet:apiKeys")) == first, "the committed ones are for another key"
    if openly:
        cli.run("config", "rm", "modelfleet:apiKeys")
        cli.run("config", "set", "--secret", "--path", 'modelfleet:apiKeys["first"]["key"]', stdin=deployment.key())
    keys.change(deployment, "al.ice@x", revoke=False)
    name, _, made = capsys.readouterr().out.strip().partition(": ")
    deployment.configure({})
    assert name == "al.ice@x"
    assert json.loads(cli.run("config", "get", "modelfleet:apiKeys")) == {**first, name: {"key": made}}
    assert not [key for key in (made, deployment.key()) if key in cli.config_file.read_text()]
    keys.change(deployment, name, revoke=True)
    assert json.loads(cli.run("config", "get", "modelfleet:apiKeys")) == first


def test_a_certificate_of_ones_own_is_kept_encrypted_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `make up` makes it. It is another one for another address, of the same authority, which clients trust already."""
    committed = stack_config("dev")
    committed["modelfleet:apiServer"] = {**committed["modelfleet:apiServer"], "tls": {"own": True}}
    monkeypatch.setattr(lifecycle, "stack_config", lambda _: dict(committed))
    monkeypatch.setattr(lifecycle, "cluster_identity", lambda *_: "3f1c")

    def configured(address: str) -> dict[str, str]:
        deployment = lifecycle.Deployment(
            stack="dev", context="elsewhere", kubeconfig=str(tmp_path / "none"), state_dir=tmp_path / "state", address=address
        )
        deployment.configure({})
        assert deployment.signs_itself
        assert "secure" in deployment.cli.read_config()["modelfleet:apiServerTls"]
        return dict(json.loads(deployment.cli.run("config", "get", "modelfleet:apiServerTls")))

    first = configured("198.18.10.11")
    assert configured("198.18.10.11") == first
    other = configured("198.18.10.12")
    assert other["authority"] == first["authority"]
    assert other["certificate"] != first["certificate"]
    kept = [path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file()]
    assert not [text for text in kept if "PRIVATE KEY" in text]
