"""docs/outputs.md. `python -m infra.documentation.outputs` prints the contract as JSON Schema."""

import json

from pydantic import BaseModel

from modelfleet_outputs.contract import VERSION, FleetOutputs, ModelOutput, StorageClasses

_INTRODUCTION = f"""# Outputs

Made from `modelfleet_outputs/contract.py` by `python -m infra.documentation`; a test compares the two. Version {VERSION}.

The stack exports `fleet`, the object below, and two secrets: `keysByName`, a map of the names of [keys](keys.md) to the keys, and
`apiKeys`, a list of the same keys, which was there before they had names. A Pulumi program reads them with the package
`modelfleet-outputs` (directory `modelfleet_outputs/`, which imports nothing else of this repository); any other program reads the JSON of
`pulumi stack output fleet --json`. A complete consumer is [examples/openhands](../examples/openhands).

A stack reference brings all outputs of a stack into the state of the one that refers, every key among them. A team gets a stack of its own
with the same outputs and its own key alone: [examples/team](../examples/team).

```python
import pulumi
from modelfleet_outputs.stack import Fleet

fleet = Fleet(pulumi.StackReference("organization/modelfleet-team/search-team"))
pulumi.export("base_url", fleet.outputs.apply(lambda outputs: outputs.url))
```

Within a version, fields keep their names, types and meaning, and new fields are optional; readers ignore fields that they do not
know. `tests/contract/outputs-v{VERSION}.schema.json` is that promise: it is not edited once it is published, and a test holds the
contract against it. For anything else `VERSION` is raised, and the schema of the new version is added beside the old one:
`python -m infra.documentation.outputs` prints it.
"""


def _type(annotation: object) -> str:
    text = annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, "__args__") else str(annotation)
    return text.replace(f"{FleetOutputs.__module__}.", "").replace("|", "\\|")


def _table(model: type[BaseModel]) -> str:
    rows = [
        f"| `{name}` | {_type(field.annotation)} | {' '.join((field.description or '').split())} |"
        for name, field in model.model_fields.items()
    ]
    return "\n".join(["| field | type | meaning |", "| --- | --- | --- |", *rows])


def document() -> str:
    """The whole page."""
    parts = [_INTRODUCTION]
    for model in (FleetOutputs, ModelOutput, StorageClasses):
        parts.append(f"## {model.__name__}\n\n{(model.__doc__ or '').strip()}\n\n{_table(model)}\n")
    return "\n".join(parts)


def schema() -> str:
    """The contract as JSON Schema."""
    return json.dumps(FleetOutputs.model_json_schema(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    print(schema(), end="")
