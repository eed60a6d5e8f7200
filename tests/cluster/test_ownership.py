"""What others made on the cluster is neither taken over nor deleted: by another operator, by another stack, by people and programs."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra import ROOT
from infra.engine.errors import CliError, CommandError
from infra.lifecycle import deployment as deployments
from infra.lifecycle import removal
from infra.lifecycle.deployment import Deployment
from tests.cluster.conftest import MODEL, Stack
from tests.cluster.faults import deployment as pause
from tests.cluster.kube import of_others
from tests.cluster.test_lifecycle import BY_HAND

pytestmark = pytest.mark.cluster
OURS = "organization/modelfleet/dev"


WATCHED = (*BY_HAND, "Role", "RoleBinding", "ValidatingWebhookConfiguration", "MutatingWebhookConfiguration")
"""The kinds that a stack has, and those of others that a webhook or a right could be taken from."""
OF_CONTROLLERS = ("resourceVersion", "generation", "managedFields")
"""What the API server counts up, and who wrote which field. The UID stays in: an object that was made again is another one."""


def versions(stack: Stack) -> dict[str, Any]:
    """Every object of these kinds as it is, but for what controllers report about it."""
    found: dict[str, Any] = {}
    for item in stack.kube.get(",".join(WATCHED), "-A")["items"]:
        metadata = {key: value for key, value in item["metadata"].items() if key not in OF_CONTROLLERS}
        name = f"{item['kind']}/{metadata.get('namespace', '')}/{metadata['name']}"
        found[name] = {**{key: value for key, value in item.items() if key != "status"}, "metadata": metadata}
    return found


@contextmanager
def nothing_changes(stack: Stack) -> Iterator[None]:
    """Of all that is in the cluster before, in the end."""
    before = versions(stack)
    assert {name.partition("/")[0] for name in before} >= {"StorageClass", "PriorityClass", "ServiceAccount", "Namespace"}
    yield
    after = versions(stack)
    assert {name for name in {*before, *after} if before.get(name) != after.get(name)} == set()


def another(stack: Stack, directory: Path, name: str = "dev") -> Deployment:
    return dataclasses.replace(stack.deployment, stack=name, state_dir=directory / "state")


def refusal(deployment: Deployment, overrides: dict[str, Any]) -> str:
    with pytest.raises(CliError) as error:
        deployment.deploy(overrides)
    return str(error.value)


def test_a_second_operator_with_an_empty_state_is_told_who_has_the_fleet(stack: Stack, tmp_path: Path) -> None:
    with nothing_changes(stack):
        said = refusal(another(stack, tmp_path), stack.overrides)
    assert f"Namespace/modelfleet: got one that stack {OURS} made and the state at hand does not know, want that stack's own state" in said


def another_stack(stack: Stack, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    """For the same cluster, with the committed values of the first one."""
    committed = deployments.stack_config("dev")
    monkeypatch.setattr(deployments, "stack_config", lambda _: dict(committed))
    return another(stack, directory, "second")


@pytest.fixture
def second(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    return another_stack(stack, tmp_path, monkeypatch)


def test_a_second_stack_does_not_take_what_the_first_has(stack: Stack, second: Deployment) -> None:
    with nothing_changes(stack), of_others(stack.kube, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "theirs"}}):
        said = refusal(second, {**stack.overrides, "cluster": {"namespace": "theirs"}})
        assert "Namespace/theirs: got one that kubectl-create made, want none; set modelfleet:cluster.namespace to another" in said
        # With the first one's names.
        said = refusal(second, {**stack.overrides, "cluster": {"namespace": "team-b", "prefix": ""}})
    assert f"got one that stack {OURS} made, want none; remove it, or take it over with make up TAKE=" in said


OF_OTHERS = {
    "PriorityClass": {"apiVersion": "scheduling.k8s.io/v1", "metadata": {"name": "team-b-gpu-priority"}, "value": 5},
    "StorageClass": {"apiVersion": "storage.k8s.io/v1", "metadata": {"name": "team-b-local-nvme"}, "provisioner": "nobody.example/none"},
}
"""With the names that a stack in the namespace `team-b` would give to its own."""


@pytest.mark.parametrize("kind", OF_OTHERS)
def test_a_class_of_others_is_neither_taken_over_nor_changed(stack: Stack, second: Deployment, kind: str) -> None:
    theirs: dict[str, Any] = {"kind": kind, **OF_OTHERS[kind]}
    with of_others(stack.kube, theirs), nothing_changes(stack):
        said = refusal(second, {**stack.overrides, "cluster": {"namespace": "team-b"}})
    name = f"{kind}/{theirs['metadata']['name']}"
    assert f"{name}: got one that kubectl-create made, want none; remove it, or take it over with make up TAKE={name}" in said


@contextmanager
def account(stack: Stack, role: str, directory: Path) -> Iterator[str]:
    """A kubeconfig of an account that has a role of examples/access alone."""
    objects = list(yaml.safe_load_all((ROOT / "examples" / "access" / f"{role}.yaml").read_text()))
    about: dict[str, Any] = {"metadata": {"name": f"modelfleet-{role}"}}
    objects += [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": role, "namespace": "default"}},
        {
            **about,
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", **about["metadata"]},
            "subjects": [{"kind": "ServiceAccount", "name": role, "namespace": "default"}],
        },
    ]
    with of_others(stack.kube, *objects):
        kubeconfig = yaml.safe_load(Path(stack.deployment.kubeconfig).read_text())
        token = stack.kube.run("create", "token", role, "-n", "default", "--duration=1h").strip()
        kubeconfig["users"] = [{"name": user["name"], "user": {"token": token}} for user in kubeconfig["users"]]
        (directory / role).write_text(yaml.safe_dump(kubeconfig))
        yield str(directory / role)


def test_an_object_of_an_operator_is_taken_over_only_by_name(stack: Stack) -> None:
    theirs = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "nvidia"}, "handler": "nvidia"}
    overrides = {**stack.overrides, "gpu": {"enabled": True, "memory": "16Gi"}}
    with of_others(stack.kube, theirs):
        with nothing_changes(stack):
            said = refusal(stack.deployment, overrides)
        assert "RuntimeClass/nvidia: got one that kubectl-create made, want none; remove it, or take it over" in said
        stack.deployment.deploy({**overrides, "cluster": {"take": ["RuntimeClass/nvidia"]}})
        # The next update is an ordinary one.
        stack.deployment.configure(overrides)
        stack.deployment.cli.preview(expect_no_changes=True)
        stack.deployment.deploy(stack.overrides)
        assert "NotFound" in stack.kube.refused("get", "runtimeclass", "nvidia")


def test_down_refuses_what_others_put_into_the_namespace(stack: Stack) -> None:
    theirs = pause(name="theirs")
    theirs["metadata"]["namespace"] = stack.outputs.namespace
    with (
        of_others(stack.kube, theirs),
        nothing_changes(stack),
        pytest.raises(CommandError, match=r"Namespace/modelfleet: got objects in it that are not the stack's \(Deployment/theirs\), want"),
    ):
        removal.down(stack.deployment, agreed=True)


def test_down_refuses_another_cluster_which_forget_alone_forgets(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CommandError, match=r"^FORGET: got the cluster that stack dev is on, want one that is gone; run make down CONTEXT="):
        removal.forget(stack.deployment, agreed=True)
    monkeypatch.setattr(removal, "cluster_identity", lambda *_: "another")
    with nothing_changes(stack), pytest.raises(CommandError, match=r"^down: got the cluster another behind context .* FORGET=1$"):
        removal.down(stack.deployment, agreed=True)
    gone = another(stack, tmp_path)
    gone.configure(stack.overrides)
    with pytest.raises(CommandError, match=r"^down: got no confirmation"):
        removal.forget(gone, agreed=False)
    removal.forget(gone, agreed=True)
    assert not gone.state_dir.exists()
    (aside,) = tmp_path.glob("dev.forgotten-*")
    assert (aside / "passphrase").exists(), "nothing is lost"
    assert MODEL in (aside / "Pulumi.dev.yaml").read_text()
