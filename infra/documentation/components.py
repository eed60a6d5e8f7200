"""docs/components.md. `python -m infra.documentation.components` prints the interface that a major version keeps, as JSON."""

import dataclasses
import inspect
import json
import types
from typing import Any, ForwardRef, Literal, Union, get_args, get_origin

import pulumi

import components as package
from components.contract import type_token

_INTRODUCTION = """# Components

Made from the docstrings and types of `components/` by `python -m infra.documentation`; a test compares the two.

Each component stands alone: it reads no configuration, knows no stack, and takes names and references of what others made as arguments.
Another team installs the package, imports `modelfleet_components`, and composes what it needs;
[examples/components](../examples/components) is such a program, and every component's docstring has an example that runs.

```
pip install ./components                    # from a checkout, or by its git address with #subdirectory=components
pip install './components[docker-build]'    # only to build images: [docker-build], or [docker] for a Docker daemon
```

Who takes images by digest, the default of `RuntimeImages`, needs nothing else; a fleet's own references are in its output `images`
([outputs.md](outputs.md)). Who builds them passes a checkout of this repository, of the same release, as the argument `source`.

Within a major version names, arguments, outputs and type tokens stay, and new arguments are optional.
`tests/contract/components-v1.json` is that promise, and a test compares the code with it. To add something, write it there with
`python -m infra.documentation.components`.

The names of Kubernetes objects are constants (`contract.py`), because pods find each other by these names. So a second copy of a component
needs a second namespace. Components with objects of the whole cluster take other names for those: GpuRuntime and ImageTrust a `prefix`,
the tiers of Storage a `class_name`.

| component | what | required arguments | outputs | type token |
| --- | --- | --- | --- | --- |
"""


def arguments() -> list[type[Any]]:
    """Every public class of arguments."""
    return [getattr(package, name) for name in package.__all__ if name.endswith("Args")]


def components() -> list[type[pulumi.ComponentResource]]:
    """Every public component."""
    return [getattr(package, name) for name in package.__all__ if not name.endswith("Args")]


def alternatives(annotation: Any) -> list[str]:
    """The types that a value may be of; each value of a Literal is one."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return sorted({each for part in parts for each in alternatives(part)})
    if origin is Literal:
        return sorted(repr(part) for part in parts)
    return [_named(annotation)]


def _named(annotation: Any) -> str:
    if annotation is type(None):
        return "None"
    if isinstance(annotation, ForwardRef):
        # Of pulumi.Input, whose third alternative is an Output.
        return annotation.__forward_arg__
    parts = [" | ".join(alternatives(part)) for part in get_args(annotation)]
    name = getattr(get_origin(annotation) or annotation, "__qualname__", str(annotation))
    return f"{name}[{', '.join(parts)}]" if parts else name


def interface() -> dict[str, Any]:
    """What programs of others are written against, without prose."""
    return {
        "arguments": {
            each.__name__: {
                field.name: {"type": alternatives(field.type), "required": _required(field)} for field in dataclasses.fields(each)
            }
            for each in arguments()
        },
        "components": {
            each.__name__: {
                "token": type_token(each.__name__),
                "outputs": {name: alternatives(value) for name, value in _outputs(each).items()},
                "methods": _methods(each),
            }
            for each in components()
        },
    }


def _required(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _outputs(component: type[pulumi.ComponentResource]) -> dict[str, Any]:
    return {name: value for name, value in inspect.get_annotations(component).items() if not name.startswith("_")}


def _methods(component: type[pulumi.ComponentResource]) -> dict[str, list[str]]:
    """Public methods, each with its parameters."""
    found = {name: value for name, value in vars(component).items() if inspect.isfunction(value) and not name.startswith("_")}
    return {name: list(inspect.signature(value).parameters)[1:] for name, value in found.items()}


def _row(component: type[pulumi.ComponentResource]) -> str:
    name = component.__name__
    required = [field.name for field in dataclasses.fields(getattr(package, f"{name}Args")) if _required(field)]
    first = (component.__doc__ or "").split("\n\n")[0]
    cells = [name, " ".join(first.split()), _code(required), _code(list(_outputs(component))), f"`{type_token(name)}`"]
    return f"| {' | '.join(cells)} |"


def _code(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def document() -> str:
    """The whole page."""
    return _INTRODUCTION + "\n".join(_row(component) for component in components()) + "\n"


def promise() -> str:
    """The interface as JSON."""
    return json.dumps(interface(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    print(promise(), end="")
