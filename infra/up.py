"""`make up`, `make down`, `make status`: from nothing to a chat answer, and back."""

import argparse
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from devcluster import archive, host, toolchain
from devcluster import cluster as embedded
from devcluster.layout import Cluster, ClusterError, default_name, load
from devcluster.oci import Image, RegistryError
from devcluster.toolchain import ToolchainError
from images import embedded as images
from infra.changes import RefusedError
from infra.cli import TOOLS, CliError, PulumiCli, Watched, needs_own_tools
from infra.cluster import identity as cluster_identity
from infra.explain.causes import LASTING, explain
from infra.explain.facts import Finding
from infra.explain.snapshot import SnapshotError, collect
from infra.preview import stack_config
from infra.settings import SettingsError
from modelfleet_outputs import FleetOutputs, OutputsError, parse

QUESTION = "What is the capital of France? Answer in one short sentence."


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A stack on a cluster: where it is, and where its state is."""

    stack: str
    context: str
    kubeconfig: str
    state_dir: Path
    builder: str = "prebuilt"
    """`images.builder` of the stack."""

    @property
    def cli(self) -> PulumiCli:
        env = {"KUBECONFIG": self.kubeconfig}
        return PulumiCli(stack=self.stack, state_dir=self.state_dir, env=env, builder=self.builder, watch=self._watch())

    @property
    def key_file(self) -> Path:
        return self.state_dir / "api-key"

    @property
    def namespace(self) -> str:
        """Where the stack is, as its private configuration says, or else the committed one."""
        cluster = self.cli.read_config().get("modelfleet:cluster") or stack_config(self.stack).get("modelfleet:cluster", {})
        return str(cluster.get("namespace", "modelfleet"))

    def findings(self) -> list[Finding]:
        """What `make explain` would say now; nothing when the cluster cannot be read."""
        try:
            return explain(collect(self.context, self.kubeconfig, self.namespace, None))
        except SnapshotError:
            return []

    def _watch(self) -> Callable[[], Watched]:
        """What to say of an update that has gone quiet. A lasting cause that is seen twice ends it."""
        before: set[tuple[str, str]] = set()

        def look() -> Watched:
            nonlocal before
            found = self.findings()
            lasting = {(each.subject, each.cause): each for each in found if each.cause in LASTING}
            hopeless = next((str(each) for name, each in lasting.items() if name in before), "")
            before = set(lasting)
            return Watched([f"waiting: {each}" for each in found], hopeless)

        return look

    def configure(self, overrides: Mapping[str, Any]) -> None:
        """Write the private configuration: committed values, then `overrides`, then the secrets, which are made once.

        An override is merged into its section; a list such as `models` takes the place of the committed one.
        """
        cli = self.cli
        cli.ensure_stack()
        before = cli.read_config()
        # What the committed file has encrypted is for the key of that file, which is not ours.
        config = {key: value for key, value in stack_config(self.stack).items() if not _is_encrypted(value)}
        config["modelfleet:cluster"] = {
            **config.get("modelfleet:cluster", {}),
            "context": self.context,
            "identity": before.get("modelfleet:cluster", {}).get("identity") or cluster_identity(self.context, self.kubeconfig),
        }
        for section, values in overrides.items():
            key = f"modelfleet:{section}"
            config[key] = {**config.get(key, {}), **values} if isinstance(values, Mapping) else values
        kept = {name: value for name, value in before.items() if _is_encrypted(value)}
        cli.write_config(config | kept)
        if "modelfleet:apiKeys" not in kept:
            key = secrets.token_urlsafe(24)
            with os.fdopen(os.open(self.key_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(key)
            cli.run("config", "set", "--secret", "modelfleet:apiKeys", stdin=json.dumps([key]))
        if "modelfleet:cachePassword" not in kept:
            cli.run("config", "set", "--secret", "modelfleet:cachePassword", stdin=secrets.token_hex(16))

    def take_registry_auth(self, overrides: Mapping[str, Any], file: str) -> None:
        """Keep the logins of a dockerconfigjson in the private configuration, encrypted. Raises SettingsError."""
        try:
            text = Path(file).read_text()
        except OSError as error:
            raise SettingsError(f"PULL_AUTH: got {file!r} ({error.strerror}), want a dockerconfigjson; see docs/images.md") from None
        self.configure(overrides)
        self.cli.run("config", "set", "--secret", "modelfleet:registryAuth", stdin=text)

    def deploy(self, overrides: Mapping[str, Any], allow_data_loss: Collection[str] = ()) -> FleetOutputs:
        """`pulumi up`. Raises CliError with Pulumi's message, or RefusedError, also for data that `allow_data_loss` does not name."""
        self.configure(overrides)
        self.cli.update("up", allow_data_loss)
        return self.outputs()

    def outputs(self) -> FleetOutputs:
        return parse(json.loads(self.cli.run("stack", "output", "fleet", "--json")))

    def objects(self) -> list[str]:
        """`Kind/name` of every object that the state knows, sorted; none without a state. Raises CliError."""
        if not self.cli.has_stack():
            return []
        state = json.loads(self.cli.run("stack", "export"))["deployment"]
        found = [each for each in state.get("resources", []) if each["type"].startswith("kubernetes:")]
        return sorted(f"{each['type'].rpartition(':')[2]}/{each['id'].rpartition('/')[2]}" for each in found if each.get("id"))

    def destroy(self) -> None:
        self.cli.update("destroy")


def _is_encrypted(value: Any) -> bool:
    return isinstance(value, dict) and "secure" in value


def on_embedded(cluster: Cluster, stack: str) -> Deployment:
    return Deployment(
        stack=stack, context=cluster.context, kubeconfig=str(cluster.kubeconfig), state_dir=cluster.state_dir / "pulumi" / stack
    )  # fmt: skip


def on_context(context: str, stack: str) -> Deployment:
    """A cluster of the user's own; nothing is built for it but what its configuration says."""
    root = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "modelfleet" / "contexts"
    kubeconfig = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    builder = stack_config(stack).get("modelfleet:images", {}).get("builder", "prebuilt")
    directory = root / context.replace("/", "_") / stack
    return Deployment(stack=stack, context=context, kubeconfig=kubeconfig, state_dir=directory, builder=builder)


def image_overrides(built: Mapping[str, Image]) -> dict[str, Any]:
    return {"images": {"builder": "prebuilt", "refs": {name: image.reference for name, image in built.items()}}}


def start_embedded(
    name: str, nodes: int, ggufs: Mapping[str, Path] | None = None, *, agreed: bool = False
) -> tuple[Cluster, dict[str, Image]]:
    """A ready cluster with every image of the stack in its registry. `agreed`: missing packages are installed without a question.

    What images stand on is fetched while tools compile, and images are made while the cluster starts.
    """
    # All at once: two builds at a time to the end, and one honest estimate.
    own = needs_own_tools()
    tools = [tool.name for tool in toolchain.TOOLCHAIN if not tool.on_demand and (own or tool.name not in TOOLS)]
    embedded.prepare(tools, agreed=agreed)
    with ThreadPoolExecutor(1) as pool:
        fetching = pool.submit(images.fetch, ggufs)
        toolchain.ensure(tools)
        fetching.result()
        building = pool.submit(images.build, ggufs)
        cluster = embedded.up(name, nodes)
        built = building.result()
    embedded.push(cluster, list(built.values()))
    return cluster, built


@contextmanager
def port_forward(deployment: Deployment, outputs: FleetOutputs) -> Any:
    """A loopback port to the API server through the cluster's own API."""
    argv = ["kubectl", "--kubeconfig", deployment.kubeconfig, "--context", deployment.context, "-n", outputs.namespace]
    argv += ["port-forward", f"service/{outputs.service}", f":{outputs.port}"]
    if shutil.which("kubectl") is None:
        raise ClusterError("PATH: got no kubectl, want it to reach a cluster of your own; install it")
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline() if process.stdout else ""
        port = line.partition("127.0.0.1:")[2].partition(" ")[0]
        if not port:
            raise ClusterError("kubectl port-forward: got no port, want one; look at kubectl get pods")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.communicate()


def chat(url: str, key: str, model: str, question: str, timeout_s: float = 120.0) -> str:
    """One answer of the fleet; asks again while it says 503 or 429 with Retry-After. Raises httpx.HTTPError."""
    body = {"model": model, "messages": [{"role": "user", "content": question}], "max_tokens": 64, "temperature": 0}
    deadline = time.monotonic() + timeout_s
    with httpx.Client(headers={"Authorization": f"Bearer {key}"}, timeout=timeout_s, trust_env=False) as client:
        while True:
            response = client.post(f"{url}/v1/chat/completions", json=body)
            wait_s = float(response.headers.get("retry-after", 0))
            if response.status_code not in (429, 503) or not wait_s or time.monotonic() + wait_s > deadline:
                break
            time.sleep(wait_s)
    response.raise_for_status()
    return str(response.json()["choices"][0]["message"]["content"]).strip()


def _show(deployment: Deployment, outputs: FleetOutputs, url: str, *, forwarded: bool) -> None:
    key = deployment.key_file.read_text()
    for model in outputs.models:
        say(f"chat: asking {model.id}: {QUESTION}")
        print(f"\n{model.id}: {chat(url, key, model.id, QUESTION)}")
    print()
    example = json.dumps({"model": outputs.models[0].id, "messages": [{"role": "user", "content": "Hello"}]})
    if forwarded:
        kubectl = f"kubectl --context {deployment.context} -n {outputs.namespace}"
        print(f"forward:   {kubectl} port-forward service/{outputs.service} 8000:{outputs.port}")
        url = "http://127.0.0.1:8000"
    print(f"endpoint:  {url}{outputs.base_path}")
    print(f"models:    {', '.join(model.id for model in outputs.models)}")
    print(f"key:       {deployment.key_file}")
    print(f'try:       curl {url}/v1/chat/completions -H "Authorization: Bearer $(cat {deployment.key_file})" \\')
    print(f"             -H 'Content-Type: application/json' -d '{example}'")
    stack = f" STACK={deployment.stack}" if deployment.stack != "dev" else ""
    print("stop:      make down" + (f" CONTEXT={deployment.context}{stack}" if forwarded else ""))


def up(options: argparse.Namespace) -> None:
    """Deploy, ask each model a question, and say how to reach it. Raises what went wrong."""
    started = time.monotonic()
    stack, context = options.stack, options.context
    if context:
        cluster, deployment, overrides = None, on_context(context, stack), {}
    else:
        if options.tools:
            host.check()
            archive.take(options.tools)
        cluster, built = start_embedded(default_name(), options.nodes, agreed=options.yes)
        deployment, overrides = on_embedded(cluster, stack), image_overrides(built)
    if options.registry_auth:
        deployment.take_registry_auth(overrides, options.registry_auth)
    deployed = time.monotonic()
    outputs = deployment.deploy(overrides, options.allow_data_loss.split())
    say(f"up: stack {stack} deployed in {time.monotonic() - deployed:.0f} s")
    reach: AbstractContextManager[str] = (
        port_forward(deployment, outputs) if cluster is None else nullcontext(f"http://{cluster.control_plane.address}:{outputs.node_port}")
    )
    with reach as url:
        _show(deployment, outputs, url, forwarded=bool(context))
    say(f"up: done in {time.monotonic() - started:.0f} s")


def down(stack: str, context: str, *, agreed: bool = False) -> None:
    """Remove the embedded cluster, or, with a `context`, what the stack made there, after a question. Raises what went wrong."""
    if context:
        _down_context(on_context(context, stack), agreed=agreed)
        return
    if os.geteuid() != 0:
        raise ClusterError("user: got no root, want the user that ran make up; run with sudo")
    # The cluster goes with everything in it, so there is nothing to destroy one by one.
    if embedded.down_named(default_name()):
        say("down: the embedded cluster and all that it made are gone")
        return
    say("down: nothing is up")
    for other in embedded.of_others():
        state, name = Path(other).parents[2], Path(other).name
        remove = f"sudo env XDG_STATE_HOME={state} {sys.executable} -m devcluster --name {name} down"
        say(f"down: there is a cluster in {other}, of another user or HOME; it goes with: {remove}")


def _down_context(deployment: Deployment, *, agreed: bool) -> None:
    """Show what goes from a cluster of the user's, and ask. Raises ClusterError without a yes."""
    resources = deployment.objects()
    if not resources:
        say(f"down: stack {deployment.stack} has nothing on {deployment.context}")
        return
    say(f"down: these {len(resources)} objects of stack {deployment.stack} go from {deployment.context}, namespace {deployment.namespace}:")
    for line in resources:
        say(f"  {line}")
    if not agreed and not _confirmed(f"Type the name of the context, {deployment.context}, to delete them: ", deployment.context):
        raise ClusterError("down: got no confirmation, want the context's name typed; run it in a terminal, or add YES=1")
    deployment.destroy()


def _confirmed(question: str, answer: str) -> bool:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip() == answer


def find(stack: str, context: str) -> Deployment | None:
    """The deployment that the commands speak of; None without an embedded cluster."""
    if context:
        return on_context(context, stack)
    cluster = load(default_name())
    return on_embedded(cluster, stack) if cluster is not None else None


def _explain(stack: str, context: str) -> None:
    """What `make explain` says, after an error; nothing when it has nothing to say or cannot look."""
    deployment = find(stack, context)
    for finding in deployment.findings() if deployment else []:
        if finding.cause != "namespace-missing":
            print(f"cause: {finding}", file=sys.stderr)


def status(stack: str, context: str) -> int:
    if context:
        print(on_context(context, stack).outputs().model_dump_json(indent=1))
        return 0
    cluster = load(default_name())
    if cluster is None:
        print("down; run make up")
        return 1
    rows = embedded.status(cluster)
    for name, state in rows:
        print(f"{name:28} {state}")
    outputs = on_embedded(cluster, stack).outputs()
    print(f"{'endpoint':28} http://{cluster.control_plane.address}:{outputs.node_port}{outputs.base_path}")
    return 0 if rows[-1][1] == "ready" else 1


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.up", description=__doc__)
    parser.add_argument("command", choices=["up", "down", "status"])
    parser.add_argument("--stack", default="dev")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--context", default="", help="default: the embedded cluster")
    parser.add_argument("--allow-data-loss", default="", help="objects (Kind/name) whose data may go")
    parser.add_argument("--registry-auth", default="", help="file with the logins of private registries")
    parser.add_argument("--tools", default="", help="FILE-or-https-address@sha256:HEX of an archive of built tools: nothing is compiled")
    parser.add_argument("--yes", action="store_true", help="ask nothing: install missing packages, delete what down shows")
    options = parser.parse_args(arguments)
    try:
        if options.command == "up":
            up(options)
        elif options.command == "down":
            down(options.stack, options.context, agreed=options.yes)
        else:
            return status(options.stack, options.context)
    except (ClusterError, ToolchainError, RegistryError, images.ImageError, RefusedError, SettingsError, OutputsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except CliError as error:
        print(f"error: {error}", file=sys.stderr)
        _explain(options.stack, options.context)
        return 1
    except httpx.HTTPError as error:
        print(f"error: chat: got {error}, want an answer; see the causes below, or run make explain", file=sys.stderr)
        _explain(options.stack, options.context)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
