"""Runs the example in each component's docstring as it stands: what another team would copy.

`python -m tests.component.examples` runs them all, wherever the package is installed.
"""

import importlib.metadata
import importlib.util
import re
import sys
import textwrap

import pulumi
import pulumi_kubernetes as k8s

try:
    import modelfleet_components as components  # pyright: ignore[reportMissingImports] (only where it is installed)
except ModuleNotFoundError:
    import components
from tests.component.harness import Recorder, render

COMPONENTS = sorted(name for name in components.__all__ if not name.endswith("Args"))


def example(name: str) -> str:
    """The lines that stand four columns further in than the docstring itself."""
    lines = (getattr(components, name).__doc__ or "").splitlines()
    return textwrap.dedent("\n".join(line for line in lines if line.startswith(" " * 8)))


def run(name: str) -> None:
    code = example(name)
    assert f"{name}(" in code, f"{name} has no example in its docstring"
    scope = {**{each: getattr(components, each) for each in components.__all__}, "pulumi": pulumi, "k8s": k8s}
    assert f"modelfleet:index:{name}" in types(render(lambda: exec(compile(code, name, "exec"), scope)))  # noqa: S102 (our own docstrings)


def run_readme() -> None:
    """The program in the description that the installed package brings along."""
    text = importlib.metadata.metadata("modelfleet-components")["Description"]
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    pulumi.runtime.set_all_config({"modelfleet:cachePassword": "sixteen-or-more-characters"})
    assert "modelfleet:index:CacheServer" in types(render(lambda: exec(compile(code, "README.md", "exec"), {})))  # noqa: S102


def types(recorder: Recorder) -> set[str]:
    return {resource.typ for resource in recorder.resources}


if __name__ == "__main__":
    assert importlib.util.find_spec("infra") is None, "this repository can be imported"
    for each in COMPONENTS:
        run(each)
    run_readme()
    sys.stdout.write(f"{components.__file__} {' '.join(COMPONENTS)}\n")
