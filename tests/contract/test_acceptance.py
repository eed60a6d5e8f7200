"""docs/acceptance.md has every line of the original design, with tests that exist; and what no other test holds of these lines.

Whether a test would fail without its line is for whoever adds the row to see; that it exists, and that no row is lost, is seen here.
"""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.program.settings.committed import stack_config
from tests.contract.test_threats import is_there

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "acceptance.md").read_text()
LINES = {
    "The picture": 10,
    "Base images": 9,
    "Model server container": 8,
    "Ollama fleet": 15,
    "Local cache layer": 13,
    "Shared storage layer": 9,
    "GPU allocation": 8,
    "Resource quotas": 7,
    "Cache configuration": 7,
    "Network policy": 8,
    "Phases": 12,
    "Best practices": 16,
    "Recommendations": 16,
    "Next steps": 16,
}
"""Section of the page to how many lines the design has there."""
ROW = re.compile(r"^\| (?!line |phase: |---)(.+?) \| (.+?) \| (.+) \|$", re.MULTILINE)
GPU = re.compile(r"^\| (?!what |---)(.+?) \| (?:`([\w./]+)`, (\d{4}-\d\d-\d\d)|(not run by us)) \| (.+) \|$", re.MULTILINE)


def section(name: str) -> str:
    return PAGE.partition(f"\n## {name}\n")[2].partition("\n## ")[0]


ROWS = [(name, *row) for name in LINES for row in ROW.findall(section(name))]


def golden(stack: str) -> list[dict[str, Any]]:
    return [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "tests" / "golden" / stack).glob("*.yaml"))]


def test_no_line_is_lost_or_there_twice() -> None:
    assert Counter(name for name, *_ in ROWS) == LINES
    assert [each for each, count in Counter((name, line) for name, line, *_ in ROWS).items() if count > 1] == []


@pytest.mark.parametrize(("name", "line", "here", "accepted"), ROWS, ids=[f"{name}: {line}" for name, line, *_ in ROWS])
def test_a_line_is_as_written_or_says_why_not_and_has_tests_that_exist(name: str, line: str, here: str, accepted: str) -> None:
    assert here.startswith("as written") or re.match(r"otherwise: .*(\]\(|defects? \d)", here), here
    tests = re.findall(r"`(tests/[\w/]+\.py(?:::\w+)*)`", accepted)
    assert tests, line
    for each in tests:
        is_there(each)
    assert ("[on a GPU](#what-only-a-gpu-can-show)" in accepted) == ("on a GPU" in accepted)


def test_a_proof_that_accepts_a_line_has_passed() -> None:
    """Whether its result still holds is what a release asks."""
    named = {path for *_, accepted in ROWS for path in re.findall(r"`(tests/proofs/\w+\.py)", accepted)}
    names = {file: re.findall(r"^PROOF = Proof\(\s*\"([\w-]+)\"", (ROOT / file).read_text(), re.MULTILINE) for file in named}
    records = {file: ROOT / "bench" / "results" / "proofs" / f"{name}.json" for file, (name,) in names.items()}
    results = {file: json.loads(record.read_text())["result"] if record.exists() else "never run" for file, record in records.items()}
    assert results == dict.fromkeys(named, "passed")


def test_what_ran_on_a_gpu_has_the_date_of_its_last_run() -> None:
    result = json.loads((ROOT / "bench" / "results" / "gpu.json").read_text())
    rows = GPU.findall(section("What only a GPU can show"))
    assert len(rows) == section("What only a GPU can show").count("\n| ") - 2, "each row says where its figures are, or that it was not run"
    for what, path, date, _, instead in rows:
        part: Any = result
        dates = [result["date"]]
        for key in path.split(".") if path else []:
            part = part[key]
            dates += [part["date"]] if "date" in part else []
        assert date in ("", dates[-1]), what
        for each in re.findall(r"`(tests/[\w/]+\.py(?:::\w+)*)`", instead):
            is_there(each)


AS_WRITTEN = list(
    yaml.safe_load_all("""
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: ollama}
spec:
  serviceName: ollama
  replicas: 3
  template:
    spec:
      containers:
      - name: ollama
        resources: {limits: {nvidia.com/gpu: 1}}
        volumeMounts: [{name: models, mountPath: /models}]
  volumeClaimTemplates:
  - metadata: {name: models}
    spec: {accessModes: [ReadWriteOnce], storageClassName: local-nvme, resources: {requests: {storage: 100Gi}}}
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: local-nvme}
volumeBindingMode: WaitForFirstConsumer
reclaimPolicy: Retain
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: shared-models}
provisioner: nfs.csi.k8s.io
parameters: {server: nfs.example.com, share: /exports/models}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: shared-models}
spec: {accessModes: [ReadWriteMany], storageClassName: shared-models, resources: {requests: {storage: 1Ti}}}
---
apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata: {name: gpu-priority}
value: 1000000
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: nvidia}
handler: nvidia
scheduling: {nodeSelector: {nvidia.com/gpu.present: "true"}}
---
apiVersion: v1
kind: ResourceQuota
metadata: {name: governance-quota}
spec: {hard: {requests.nvidia.com/gpu: 8}}
---
apiVersion: v1
kind: LimitRange
metadata: {name: governance-defaults}
spec: {limits: [{type: Container}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: cache-config}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: model-server}
spec:
  podSelector: {matchLabels: {app.kubernetes.io/name: model-server}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from: [{podSelector: {matchLabels: {app.kubernetes.io/name: api-server}}}]
    ports: [{protocol: TCP, port: 8080}]
  egress:
  - to: [{podSelector: {matchLabels: {app.kubernetes.io/name: cache-server}}}]
    ports: [{protocol: TCP, port: 6379}]
""")
)
"""The design's manifests, without what docs/acceptance.md says is otherwise, under the names that objects have here."""


def lacks(wanted: Any, found: Any, at: str = "") -> list[str]:
    """Where something wanted is not in what was found. A list has to have each of the wanted elements."""
    if isinstance(wanted, dict):
        return [line for key, value in wanted.items() for line in lacks(value, (found or {}).get(key), f"{at}.{key}")]
    if isinstance(wanted, list):
        return [f"{at}: {each}" for each in wanted if all(lacks(each, other) for other in found or [])]
    return [] if str(wanted) == str(found) else [f"{at}: got {found!r}, want {wanted!r}"]


@pytest.mark.parametrize("wanted", AS_WRITTEN, ids=[f"{each['kind']}/{each['metadata']['name']}" for each in AS_WRITTEN])
def test_prod_has_what_the_design_writes(wanted: dict[str, Any]) -> None:
    (found,) = (
        each for each in golden("prod") if each["kind"] == wanted["kind"] and each["metadata"]["name"] == wanted["metadata"]["name"]
    )
    assert lacks(wanted, found) == []
    for key in wanted.keys() - {"kind", "metadata"}:
        assert lacks(wanted, {**found, key: None}) != [], "it would be noticed"


def test_volumes_hold_files() -> None:
    claims = [each["spec"] for each in golden("prod") if each["kind"] == "PersistentVolumeClaim"]
    claims += [claim["spec"] for each in golden("prod") if each["kind"] == "StatefulSet" for claim in each["spec"]["volumeClaimTemplates"]]
    assert len(claims) > 2
    assert {claim.get("volumeMode", "Filesystem") for claim in claims} == {"Filesystem"}


def test_classes_of_priority_say_what_they_are_for() -> None:
    classes = [each for each in golden("prod") if each["kind"] == "PriorityClass"]
    assert all(each["description"] and not each.get("globalDefault") for each in classes)


def test_dev_is_local_small_and_open_to_a_look() -> None:
    found = golden("dev")
    assert {each["spec"]["replicas"] for each in found if each["kind"] in ("StatefulSet", "Deployment")} == {1}
    provisioners = {each["provisioner"] for each in found if each["kind"] == "StorageClass"}
    assert provisioners == {"modelfleet.dev/local", "modelfleet.dev/shared"}, "directories of the machine itself"
    assert not stack_config("dev")["modelfleet:governance"].get("production"), "make shell and make debug look into pods"
    assert stack_config("prod")["modelfleet:governance"]["production"]


DOCKERFILES = {path.parent.name: path.read_text() for path in sorted((ROOT / "images").glob("*/Dockerfile"))}


def test_bases_are_the_designs_in_versions_that_stay() -> None:
    bases = {base for text in DOCKERFILES.values() for base in re.findall(r"^FROM (\S+)", text, re.MULTILINE)}
    kinds = {re.sub(r"[\d.]{3,}", "N", base.partition("@")[0]) for base in bases - {"${BASE}"}}
    assert kinds == {"nvidia/cuda:N-base-ubuntuN", "python:N-slim-bookworm", "ollama/ollama:N", "debian:trixie-slim"}
    assert {base for base in bases if base.startswith("python:")} == {"python:3.12-slim-bookworm"}


@pytest.mark.parametrize("image", [name for name, text in DOCKERFILES.items() if "apt-get" in text])
def test_apt_brings_what_is_named_and_leaves_no_lists(image: str) -> None:
    lines = re.findall(r"^RUN (?:.*\\\n)*.*$", DOCKERFILES[image], re.MULTILINE)
    installing = [line for line in lines if "apt-get" in line]
    assert installing
    for line in installing:
        assert "--no-install-recommends" in line
        assert line.rstrip().endswith("rm -rf /var/lib/apt/lists/*")
