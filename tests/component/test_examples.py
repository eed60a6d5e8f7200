"""The example in each component's docstring runs as it stands: what another team would copy."""

import textwrap

import pulumi
import pulumi_kubernetes as k8s
import pytest

import modelfleet_components as components
from tests.component.harness import render

COMPONENTS = sorted(name for name in components.__all__ if not name.endswith("Args"))


def example(name: str) -> str:
    """The lines that stand four columns further in than the docstring itself."""
    lines = (getattr(components, name).__doc__ or "").splitlines()
    return textwrap.dedent("\n".join(line for line in lines if line.startswith(" " * 8)))


@pytest.mark.parametrize("name", COMPONENTS)
def test_the_example_of_a_component_runs(name: str) -> None:
    code = example(name)
    assert f"{name}(" in code, f"{name} has no example in its docstring"
    scope = {**{each: getattr(components, each) for each in components.__all__}, "pulumi": pulumi, "k8s": k8s}
    recorder = render(lambda: exec(compile(code, name, "exec"), scope))  # noqa: S102 (our own docstrings)
    assert [resource.typ for resource in recorder.resources if resource.typ == f"modelfleet:index:{name}"]
