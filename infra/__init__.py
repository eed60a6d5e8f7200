"""What is deployed, and how: the Pulumi program and the commands of the Makefile.

`program`        what `pulumi up` runs: settings, then components, then outputs
`engine`         runs Pulumi's command line on that program, and reads what an update would do before it runs
`analysis`       looks at renderings and at running clusters: `preview`, `manifests`, `policy`, `explain`
`preparation`    what is made before a deployment: certificates, files for GPU nodes, signed images' digests
`lifecycle`      `make up`, `make down`, `make status` and `make explain`; `modelfleet up` and so on are the same commands
`documentation`  the pages of docs/ that are made from code

Each package imports from those above it alone; `preparation` from `program` and `engine`, `documentation` from `program` alone.
"""

from pathlib import Path

from modelfleet.place import WORK

__all__ = ["ROOT", "WORK"]

ROOT = Path(__file__).resolve().parent.parent
"""The repository, or the copy of it that the wheel carries: what is deployed, and what images are built from. Nothing is written there."""
