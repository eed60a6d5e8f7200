"""The cluster that a command of the Makefile speaks of."""

import argparse
from contextlib import AbstractContextManager
from typing import Protocol

from infra.lifecycle.deployment import Deployment
from infra.lifecycle.own_cluster import OwnCluster


class Target(Protocol):
    """A cluster to deploy one stack to."""

    def deployment(self) -> Deployment | None: ...
    def up(self, options: argparse.Namespace) -> None: ...
    def down(self, options: argparse.Namespace) -> None: ...
    def prometheus(self, deployment: Deployment) -> AbstractContextManager[str]: ...
    def kubectl(self) -> str: ...
    def status(self) -> int: ...


def target(stack: str, context: str) -> Target:
    """The cluster behind that context of the kubeconfig; the embedded one where `context` is empty."""
    if context:
        return OwnCluster(stack, context)
    # Those who have a cluster need nothing of the embedded one, on machines where it may not even load.
    from infra.lifecycle.embedded import EmbeddedCluster  # noqa: PLC0415

    return EmbeddedCluster(stack)
