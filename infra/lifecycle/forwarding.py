"""A port of this machine that leads to a Service through the cluster's own API, for as long as a command needs it."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from infra.engine.errors import CommandError
from infra.lifecycle.deployment import Deployment


@contextmanager
def forwarded(kubectl: str, deployment: Deployment, namespace: str, service: str, port: int, scheme: str = "http") -> Iterator[str]:
    """The address on loopback. Raises CommandError with what kubectl said."""
    argv = [kubectl, "--kubeconfig", deployment.kubeconfig, "--context", deployment.context, "-n", namespace]
    argv += ["port-forward", f"service/{service}", f":{port}"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline() if process.stdout else ""
        number = line.partition("127.0.0.1:")[2].partition(" ")[0]
        if not number:
            process.terminate()
            said = " ".join(process.communicate()[1].split())[-500:]
            raise CommandError(
                f"kubectl port-forward: got {said!r}, want a port of service/{service}; look at kubectl get pods -n {namespace}"
            )
        yield f"{scheme}://127.0.0.1:{number}"
    finally:
        process.terminate()
        process.communicate()
