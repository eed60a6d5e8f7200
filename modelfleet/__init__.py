"""The command line `modelfleet`, from a checkout or from its wheel alone. So far it has one command, `try`.

Modules here import the standard library alone: `make try` starts them with the machine's own Python. The services that they start have
packages, in an environment that `environment.python` makes.
"""

import sys
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_CARRIED = _PACKAGE / "tree"
FROM_WHEEL = _CARRIED.is_dir()
TREE = _CARRIED if FROM_WHEEL else _PACKAGE.parent
"""Where the services and images/pins.toml lie: the checkout, or the copy that the wheel carries."""

if str(TREE) not in sys.path:
    sys.path.append(str(TREE))
