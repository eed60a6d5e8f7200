"""Laws over everything that is rendered and everything that is written down."""

import ast
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from components.contract import ACTIVATOR, AGENT_PORT, API_METRICS_PORT, API_SERVER, COMPONENTS, EDGES, OLLAMA, PORTS, PROMETHEUS, SCRAPED
from components.images import BASES, CONTEXTS
from images import embedded
from infra.documentation import configuration
from infra.documentation.__main__ import PAGES
from infra.engine.binaries import PROVIDERS
from infra.program.settings.images import KNOWN
from model_server import vllm

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
DOCKERFILES = sorted((ROOT / "images").glob("*/Dockerfile"))


def documents(stack: str) -> list[dict[str, Any]]:
    return [yaml.safe_load(path.read_text()) for path in sorted((GOLDEN / stack).glob("*.yaml"))]


def pod_specs(stack: str) -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{document['kind']}/{document['metadata']['name']}", document["spec"]["template"])
        for document in documents(stack)
        if "template" in document.get("spec", {})
    ]


PODS = [(stack, name, template) for stack in ("dev", "prod") for name, template in pod_specs(stack)]


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


OURS = {
    "infra",
    "components",
    "devcluster",
    "images",
    "api_server",
    "model_server",
    "metrics_exporter",
    "ollama_agent",
    "model_sync",
    "image_verifier",
    "modelfleet",
    "modelfleet_outputs",
    "bench",
    "tests",
}


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("api_server", set()),
        ("model_server", set()),
        ("metrics_exporter", set()),
        ("ollama_agent", set()),
        ("model_sync", set()),
        ("image_verifier", set()),
        ("components", set()),
        ("devcluster", {"modelfleet"}),
        ("images", {"devcluster", "image_verifier", "modelfleet"}),
        ("modelfleet", {"model_sync", "infra"}),
        ("modelfleet_outputs", set()),
        ("examples", {"modelfleet_outputs"}),
        ("infra", {"components", "devcluster", "images", "modelfleet", "modelfleet_outputs", "model_sync"}),
    ],
)
def test_packages_import_only_what_is_below_them(package: str, allowed: set[str]) -> None:
    for path in (ROOT / package).rglob("*.py"):
        assert imports(path) & OURS <= allowed | {package}, path


def test_the_command_line_is_above_what_it_runs_and_the_rest_of_its_package_below() -> None:
    """Everything may ask it where things are; its face alone knows the commands about a stack."""
    assert sorted(path.name for path in (ROOT / "modelfleet").glob("*.py") if "infra" in imports(path)) == ["__main__.py", "commands.py"]
    sources = {path: path.read_text() for package in ("devcluster", "infra") for path in (ROOT / package).rglob("*.py")}
    asked = {name for text in sources.values() for name in re.findall(r"^\s*(?:from|import) (modelfleet(?:\.\w+)*)\b", text, re.MULTILINE)}
    assert asked == {"modelfleet.place"}


def test_only_one_module_knows_nvml() -> None:
    users = [path for path in (ROOT / "metrics_exporter").glob("*.py") if "pynvml" in imports(path)]
    assert [path.name for path in users] == ["nvml.py"]


@pytest.mark.parametrize(("stack", "name", "template"), PODS, ids=[f"{stack}-{name}" for stack, name, _ in PODS])
class TestEveryPod:
    def test_is_hardened(self, stack: str, name: str, template: dict[str, Any]) -> None:
        pod = template["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"] == {"drop": ["ALL"]}

    def test_asks_for_cpu_and_memory(self, stack: str, name: str, template: dict[str, Any]) -> None:
        for container in [*template["spec"]["containers"], *template["spec"].get("initContainers", [])]:
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            assert "memory" in container["resources"]["limits"]

    def test_mounts_only_volumes_that_it_has(self, stack: str, name: str, template: dict[str, Any]) -> None:
        claims = {
            claim["metadata"]["name"]
            for document in documents(stack)
            if document["kind"] == "StatefulSet"
            for claim in document["spec"]["volumeClaimTemplates"]
        }
        volumes = {volume["name"] for volume in template["spec"].get("volumes", [])} | claims
        mounts = {mount["name"] for container in template["spec"]["containers"] for mount in container.get("volumeMounts", [])}
        assert mounts <= volumes

    def test_has_a_policy_and_the_port_of_the_contract(self, stack: str, name: str, template: dict[str, Any]) -> None:
        component = template["metadata"]["labels"]["app.kubernetes.io/name"]
        assert component in {*COMPONENTS, PROMETHEUS}
        containers = [*template["spec"]["containers"], *template["spec"].get("initContainers", [])]
        ports = {port["containerPort"] for container in containers for port in container.get("ports", [])}
        assert not ports or PORTS[component] in ports
        assert component not in SCRAPED or SCRAPED[component] in ports

    def test_has_time_to_drain(self, stack: str, name: str, template: dict[str, Any]) -> None:
        """Kubernetes kills at the end of the grace period, which runs during preStop and the service's own drain."""
        for container in [*template["spec"]["containers"], *template["spec"].get("initContainers", [])]:
            pre_stop = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
            drains = [int(entry["value"]) for entry in container.get("env", []) if entry["name"].endswith("_DRAIN_S")]
            assert template["spec"]["terminationGracePeriodSeconds"] > pre_stop + sum(drains)

    def test_is_probed_unless_it_ends(self, stack: str, name: str, template: dict[str, Any]) -> None:
        if name.startswith("Job/"):
            return
        for container in template["spec"]["containers"]:
            assert {"readinessProbe", "livenessProbe"} <= set(container)

    def test_takes_its_image_by_a_name_that_cannot_move(self, stack: str, name: str, template: dict[str, Any]) -> None:
        for container in template["spec"]["containers"]:
            assert re.search(r"@sha256:[0-9a-f]{64}$|:src-[0-9a-f]{12}$", container["image"]), container["image"]


@pytest.mark.parametrize("stack", ["dev", "prod"])
def test_selectors_match_the_labels_of_their_pods(stack: str) -> None:
    templates = [template["metadata"]["labels"] for _, template in pod_specs(stack)]
    for document in documents(stack):
        spec = document.get("spec", {})
        selector = spec.get("selector") if document["kind"] == "Service" else spec.get("selector", {}).get("matchLabels")
        if selector:
            assert any(selector.items() <= labels.items() for labels in templates), document["metadata"]["name"]


@pytest.mark.parametrize("stack", ["dev", "prod"])
def test_every_namespaced_object_is_in_the_namespace(stack: str) -> None:
    cluster_wide = {"Namespace", "StorageClass", "PriorityClass", "RuntimeClass"}
    for document in documents(stack):
        if document["kind"] not in cluster_wide:
            assert document["metadata"]["namespace"] == "modelfleet", document["metadata"]["name"]


def test_edges_name_components_and_their_ports() -> None:
    for edge in EDGES:
        assert {edge.source, edge.target} <= {*COMPONENTS, ACTIVATOR, PROMETHEUS}
        assert edge.port == PORTS[edge.target] or (edge.target, edge.port) in {(OLLAMA, AGENT_PORT), (API_SERVER, API_METRICS_PORT)}


@pytest.mark.parametrize("path", DOCKERFILES, ids=[path.parent.name for path in DOCKERFILES])
class TestEveryDockerfile:
    def test_runs_as_the_fleets_user_in_exec_form(self, path: Path) -> None:
        config = embedded.runtime_config(path.parent.name)
        assert config.user == "10001:10001"
        assert config.entrypoint

    def test_has_no_instruction_that_kubernetes_ignores_or_that_harms(self, path: Path) -> None:
        text = path.read_text()
        assert not re.search(r"^(HEALTHCHECK|VOLUME|ADD)\b", text, re.MULTILINE)
        assert ":latest" not in text

    def test_stands_on_pinned_bases(self, path: Path) -> None:
        pins = tomllib.loads((ROOT / "images" / "pins.toml").read_text())["bases"]
        for base in re.findall(r"^FROM (\S+)", path.read_text(), re.MULTILINE):
            if base == "${BASE}":
                assert path.parent.name in BASES, "a build gives it the image of ours that it stands on"
                continue
            image, _, digest = base.partition("@")
            name, _, tag = image.partition(":")
            assert (pins[name]["tag"], pins[name]["digest"]) == (tag, digest)
            assert pins[name]["source"]
            assert pins[name]["date"]

    def test_copies_what_its_tag_stands_for_and_the_context_holds(self, path: Path) -> None:
        """.dockerignore lets nothing else through, and another source is another tag."""
        own = f"images/{path.parent.name}"
        copied = set(re.findall(r"^COPY (?!--from=)(\S+)", path.read_text(), re.MULTILINE))
        packages = {source.partition("/")[0] for source in copied if not source.startswith(f"{own}/")}
        assert packages == {*CONTEXTS[path.parent.name]} - {own}
        held = packages | {source for source in copied if source.startswith(f"{own}/")}
        assert held <= set(re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))

    def test_installs_only_locked_packages(self, path: Path) -> None:
        for line in re.findall(r"pip install .*", path.read_text()):
            assert "--require-hashes" in line


_OWN = re.compile(r"^LABEL .*|^ +org\.opencontainers.*|^EXPOSE .*|^# llama.*|^RUN apt-get .*", re.MULTILINE)
"""What a service's Dockerfile may have that others have not: what it is, its ports, its Debian packages."""


def test_services_are_built_alike() -> None:
    """Each has a Dockerfile of its own, so that an edit of one rebuilds one image; this keeps them from drifting apart."""
    texts = {name: (ROOT / "images" / name / "Dockerfile").read_text() for name in embedded.SERVICES}
    forms = {
        re.sub(r"\n+", "\n", _OWN.sub("", text)).replace(name, "<image>").replace(embedded.SERVICES[name], "<package>")
        for name, text in texts.items()
    }
    assert len(forms) == 1, "\n\n".join(sorted(forms))


def test_every_image_of_the_settings_has_a_dockerfile() -> None:
    assert {*KNOWN} == {path.parent.name for path in DOCKERFILES}


def test_every_argument_of_a_base_has_an_image_for_it() -> None:
    assert {path.parent.name for path in DOCKERFILES if "FROM ${BASE}" in path.read_text()} == set(BASES)


def pinned(lock: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9._-]+)==(\S+) ", lock.read_text(), re.MULTILINE))


def test_what_stands_on_pytorch_finds_its_packages_there() -> None:
    """Another version of one would be installed a second time, over the first."""
    base, engine = pinned(ROOT / "images/python-base/base.lock"), pinned(ROOT / "images/model-server-vllm/engine.lock")
    assert {"torch", "transformers", "accelerate"} <= set(base)
    assert {name: engine.get(name) for name in base} == base
    assert engine["vllm"] == vllm.VERSION


def test_the_engines_compiler_is_of_the_cuda_that_it_has_headers_of() -> None:
    """nvcc refuses the headers of another version. And cuda-python before 13 lays its modules over those of cuda-bindings."""
    engine = pinned(ROOT / "images/model-server-vllm/engine.lock")
    assert {engine[f"nvidia-{part}"] for part in ("cuda-nvcc", "cuda-crt", "nvvm")} == {engine["nvidia-cuda-nvcc"]}
    of = {name: engine[name].rpartition(".")[0] for name in ("nvidia-cuda-nvcc", "nvidia-cuda-runtime", "cuda-python", "cuda-bindings")}
    assert of["nvidia-cuda-nvcc"] == of["nvidia-cuda-runtime"]
    assert of["cuda-python"] == of["cuda-bindings"]


def test_no_dockerfile_can_be_taken_for_another() -> None:
    """Docker before 23 takes a Dockerfile of the same size and time for the one before (moby/buildkit#1368); a clone has one time for all."""
    sizes = {path.parent.name: path.stat().st_size for path in DOCKERFILES}
    assert len(set(sizes.values())) == len(sizes), sizes


@pytest.mark.parametrize(("plugin", "module"), [("kubernetes", "pulumi-kubernetes/sdk/v4"), ("docker-build", "pulumi-docker-build")])
def test_the_plugins_are_those_that_the_sdks_ask_for(plugin: str, module: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"pulumi-{plugin}=={PROVIDERS[plugin]}" in project["dependencies"]
    assert f"github.com/pulumi/{module} v{PROVIDERS[plugin]}" in (ROOT / f"tools/pulumi-resource-{plugin}/go.mod").read_text()


@pytest.mark.parametrize(
    "path", sorted([*ROOT.glob("requirements*.lock"), *ROOT.glob("*/requirements.lock"), *ROOT.glob("images/*/*.lock")])
)
def test_locks_have_hashes_and_no_address(path: Path) -> None:
    text = path.read_text()
    assert "://" not in text
    packages = [line for line in text.splitlines() if "==" in line and not line.startswith((" ", "#"))]
    assert packages
    assert text.count("--hash=sha256:") >= len(packages)


@pytest.mark.parametrize("stack", ["dev", "prod"])
class TestTheSchema:
    """Editors complete and check stack files by it."""

    validator = Draft202012Validator(configuration.schema())

    def stack_file(self, stack: str) -> dict[str, Any]:
        return yaml.safe_load((ROOT / f"Pulumi.{stack}.yaml").read_text())

    def test_is_named_by_the_stack_and_accepts_it(self, stack: str) -> None:
        first_line = (ROOT / f"Pulumi.{stack}.yaml").read_text().splitlines()[0]
        assert first_line == "# yaml-language-server: $schema=docs/stack.schema.json"
        Draft202012Validator.check_schema(configuration.schema())
        self.validator.validate(self.stack_file(stack))

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            (["modelfleet:flete"], {}),
            (["modelfleet:fleet", "replicsa"], 1),
            (["modelfleet:fleet", "replicas"], 0),
            (["modelfleet:models", 0, "sise"], "1Gi"),
            (["modelfleet:models", 0, "size"], "much"),
            (["modelfleet:gpu", "sharing"], {"strategy": "halves"}),
            (["modelfleet:apiKeys"], 1),
        ],
    )
    def test_refuses_an_unknown_key_and_a_wrong_value(self, stack: str, path: list[Any], value: Any) -> None:
        document = self.stack_file(stack)
        node = document["config"]
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value
        assert not self.validator.is_valid(document)

    def test_leaves_the_keys_of_others_alone(self, stack: str) -> None:
        document = self.stack_file(stack)
        document["encryptionsalt"] = "v1:abc"
        document["config"] |= {"aws:region": "eu-central-1", "modelfleet:apiKeys": {"secure": "v1:abc"}}
        self.validator.validate(document)


@pytest.mark.parametrize("name", PAGES)
def test_every_page_that_is_made_from_code_is_as_it_would_be_made(name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == PAGES[name](), "python -m infra.documentation"
