"""Signatures in a registry that asks for a login: written by the real tools with the user's login, read by the verifier with its own."""

import base64
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from devcluster import oci, toolchain
from devcluster.oci import Image, RuntimeConfig
from images.supply_chain import Publisher, SupplyChainError
from tests.service import registries
from tests.service.private_registry import PASSWORD, USER, PrivateRegistry, private_registry
from tests.service.processes import free_port, refused, running
from tests.service.test_image_trust import Trust, key_pair, verifier_files, vulnerability_database, wait

LOGIN = f"Basic {base64.b64encode(f'{USER}:{PASSWORD}'.encode()).decode()}"


@dataclass
class Private:
    """Images of a private registry, one of them signed, and verifiers that may read them or not."""

    registry: PrivateRegistry
    work: Path
    signed: Image
    unsigned: Image
    publisher: Publisher
    trust: Trust
    """Its verifier is one of `verifier`'s."""
    verifier: Callable[..., Trust]
    """Makes a verifier with these variables."""

    @property
    def tokens(self) -> list[tuple[str, str | None]]:
        """What the registry's token server was asked: path, and Authorization."""
        assert self.registry.tokens is not None
        return self.registry.tokens.seen


def image(work: Path, name: str, address: str, pushed_to: str) -> Image:
    (work / name).mkdir()
    (work / name / "metadata").write_text(f"Name: {name}\n")
    oci.write_tree(work / f"{name}.tar", [("usr", work / name)])
    made = oci.assemble(f"{address}/team/{name}", [oci.existing_layer(work / f"{name}.tar")], RuntimeConfig(user="10001"))
    oci.push(made, pushed_to, "1")
    return made


@pytest.fixture(scope="module", params=["basic", "token"])
def private(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Private]:
    work = tmp_path_factory.mktemp(request.param)
    cosign = str(toolchain.ensure(["cosign"]) / "cosign")
    key = key_pair(work / "keys", cosign)
    context, files = verifier_files(work, key)
    with ExitStack() as stack:
        # Images arrive past the lock; everything else goes through it.
        pushed_to = stack.enter_context(registries.serving(work))
        served = stack.enter_context(private_registry(work, work / "registry", request.param))

        def verifier(**variables: str) -> Trust:
            port = free_port()
            env = {"VERIFIER_HOST": "127.0.0.1", "VERIFIER_PORT": str(port), **files, **variables}
            service = stack.enter_context(running("image_verifier", port, env, work / f"verifier-{port}.log", ready=""))
            made = Trust(served.address, key, work, service, context, cosign)
            wait(made)
            return made

        (work / "auth.json").write_text(served.auth())
        docker = work / "docker"
        docker.mkdir()
        (docker / "config.json").write_text(served.auth())
        env = vulnerability_database(work / "grype", "low") | {"DOCKER_CONFIG": str(docker), "SSL_CERT_FILE": str(served.authority)}
        signed, unsigned = (image(work, name, served.address, pushed_to) for name in ("signed", "unsigned"))
        publisher = Publisher(key=key, env=env)
        publisher.publish(signed.reference)
        reads = verifier(VERIFIER_REGISTRY_AUTH_FILE=str(work / "auth.json"), VERIFIER_CA_FILE=str(served.authority))
        yield Private(served, work, signed, unsigned, publisher, reads, verifier)


def test_what_was_signed_with_the_users_login_is_read_with_the_verifiers(private: Private) -> None:
    assert private.trust.review(private.signed.reference)["allowed"] is True
    assert "want a signature by a key of images.trust" in private.trust.refusal(private.unsigned.reference)
    # From here on a token that was granted is good for all of the repository.
    private.tokens.clear()
    assert "want a signature by a key of images.trust" in private.trust.refusal(private.unsigned.reference)
    assert private.tokens == []


def test_the_tools_do_nothing_without_the_login(private: Private, tmp_path: Path) -> None:
    blind = replace(private.publisher, env={**private.publisher.env, "DOCKER_CONFIG": str(tmp_path)})
    with pytest.raises(SupplyChainError, match=r"(?i)unauthorized|401"):
        blind.publish(private.unsigned.reference)


def test_a_wrong_password_is_named_and_mended_without_a_restart(private: Private, tmp_path: Path) -> None:
    auth = tmp_path / "auth.json"
    auth.write_text(private.registry.auth("of-yesterday"))
    trust = private.verifier(VERIFIER_REGISTRY_AUTH_FILE=str(auth), VERIFIER_CA_FILE=str(private.registry.authority))
    reference, host = private.signed.reference, private.registry.address
    assert trust.refusal(reference) == (
        f"spec.containers[0].image: got {reference}, which {host} does not let the login of modelfleet:registryAuth read (status 401), "
        "want one that may; correct modelfleet:registryAuth"
    )
    assert "of-yesterday" not in trust.verifier.log.read_text()
    auth.write_text(private.registry.auth())
    assert trust.review(reference)["allowed"] is True


def test_the_login_goes_to_its_own_host_alone(private: Private) -> None:
    # The same server under another name: it is another host, and gets nothing.
    elsewhere = private.signed.reference.replace("127.0.0.1:", "localhost:")
    private.tokens.clear()
    host = private.registry.address.replace("127.0.0.1", "localhost")
    assert f"which {host} does not let anyone without a login read (status 401), want one; set modelfleet:registryAuth" in (
        private.trust.refusal(elsewhere)
    )
    assert LOGIN not in [sent for _, sent in private.tokens]


def test_a_certificate_of_an_unknown_authority_is_not_taken(private: Private) -> None:
    trust = private.verifier(VERIFIER_REGISTRY_AUTH_FILE=str(private.work / "auth.json"))
    assert "whose signature cannot be read" in (message := trust.refusal(private.signed.reference))
    assert "Certificate" in message
    assert private.trust.review(private.signed.reference)["allowed"] is True


def test_files_that_are_not_what_they_should_be_end_the_start(private: Private, tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    odd.write_text('{"auths": {"r.example": {"username": "u-that-nobody-may-see"}}}')
    _, good = verifier_files(tmp_path, private.trust.key)
    status, error = refused("image_verifier", {**good, "VERIFIER_REGISTRY_AUTH_FILE": str(odd)})
    assert (status, error) == (2, f"error: {odd}: got KeyError, want a dockerconfigjson; mount the Secret\n")
    status, error = refused("image_verifier", {**good, "VERIFIER_CA_FILE": str(odd)})
    assert (status, error) == (2, f"error: {odd}: got SSLError, want certificates in PEM; mount the ConfigMap\n")
