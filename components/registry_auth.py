"""Logins of private registries: one dockerconfigjson, for the nodes' pulls, the builders' pushes and the image verifier's reads."""

import base64
import json
import re
from dataclasses import dataclass, field
from typing import Any

import pulumi
import pulumi_kubernetes as k8s

from .contract import PULL_SECRET, labels

core = k8s.core.v1
FILE = ".dockerconfigjson"
"""Key of the document in its Secret, as Kubernetes wants it."""
_PLACE = re.compile(r"(https?://)?[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?(/[A-Za-z0-9._/-]*)?")
_DOCKER_HUB = ("docker.io", "index.docker.io", "registry-1.docker.io")
_KEYS = ({"auth"}, {"username", "password"}, {"auth", "username", "password"})
"""What an entry may consist of. Kubelets read no other form: no token, and no credential helper of the writer's machine."""


@dataclass(frozen=True, kw_only=True)
class Login:
    """Who one is at a registry."""

    place: str
    """Host, with a port or a path if the document has one."""
    username: str
    password: str = field(repr=False)

    @property
    def host(self) -> str:
        return self.place.partition("/")[0]


def logins(text: str) -> list[Login]:
    """The logins of a dockerconfigjson. Raises ValueError with what it has instead, without a part of it: any part may be a secret."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("no JSON") from None
    if not isinstance(document, dict) or set(document) != {"auths"} or not isinstance(document["auths"], dict) or not document["auths"]:
        raise ValueError("another form")
    return [_login(place, entry) for place, entry in document["auths"].items()]


def _login(place: str, entry: Any) -> Login:
    if not _PLACE.fullmatch(place):
        raise ValueError("an entry that is not under a registry's host")
    if not isinstance(entry, dict) or set(entry) - {"email"} not in _KEYS or not all(isinstance(value, str) for value in entry.values()):
        raise ValueError("an entry without a login (a credential helper may have it)")
    username, password = entry.get("username", ""), entry.get("password", "")
    if "auth" in entry:
        try:
            username, _, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
        except ValueError:
            raise ValueError("an auth that is not base64") from None
    if not username or not password or ("username" in entry and (username, password) != (entry["username"], entry["password"])):
        raise ValueError("an entry without one user name and one password")
    return Login(place=re.sub(r"^https?://|/(v[12]/?)?$", "", place), username=username, password=password)


def login_for(repository: str, known: list[Login]) -> Login | None:
    """The login for `host/path`: that with the longest place above it."""
    host = repository.partition("/")[0]
    names = _DOCKER_HUB if host in _DOCKER_HUB or not re.search(r"[.:]|^localhost$", host) else (host,)
    found = [each for each in known if each.host in names and (each.place == each.host or f"{repository}/".startswith(f"{each.place}/"))]
    return max(found, key=lambda each: len(each.place), default=None)


def pull_secret(name: str, namespace: pulumi.Input[str], auth: pulumi.Input[str], opts: pulumi.ResourceOptions) -> core.Secret:
    """The Secret that the pods of a namespace name. Its name is a constant: another password must not replace them."""
    return core.Secret(
        name,
        metadata=k8s.meta.v1.ObjectMetaArgs(name=PULL_SECRET, namespace=namespace, labels=labels("registry-auth")),
        type="kubernetes.io/dockerconfigjson",
        string_data={FILE: pulumi.Output.secret(auth)},
        opts=opts,
    )


def pulls(args: pulumi.ResourceTransformationArgs) -> None:
    """Let every pod below a component pull with the namespace's Secret: `ResourceOptions(transformations=[pulls])`.

    A pod names the Secret itself, not its service account: `kubectl get pod` shows it, a rendering too, and no pod is made
    before an account has it.
    """
    template = getattr(args.props.get("spec"), "template", None)
    if isinstance(template, core.PodTemplateSpecArgs) and isinstance(template.spec, core.PodSpecArgs):
        template.spec.image_pull_secrets = [core.LocalObjectReferenceArgs(name=PULL_SECRET)]
