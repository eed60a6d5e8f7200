"""`make up` from source on an empty Debian: everything is compiled there. Needs root and mmdebstrap. 80 minutes on two cores."""

from typing import Any

import pytest

from tests.proofs import ways
from tests.proofs.records import Proof

PROOF = Proof("fresh-root-source", guards=ways.GUARDS)
KEPT_MB = 8000


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("suite", ways.SUITES)
def test_the_way_from_source_answers_on_an_empty_debian(suite: str, figures: dict[str, Any]) -> None:
    with ways.fresh_checkout(suite) as root:
        cold, warm = ways.up_and_down(root, ways.readme_command("make up"), 3600)
        figures[f"{suite} make up"] = {"cold": cold.as_figures(), "warm": warm.as_figures()}
    # On two cores; a machine with more needs less.
    assert cold.wall_s <= 40 * 60
    assert cold.cpu_min <= 60
    assert cold.kept_mb <= KEPT_MB
