"""The quick ways to an answer, on an empty Debian: plain processes, and the embedded cluster from built tools.

Then what depends on Debian's release is made from source: what its C compiler compiles, and the images.

Needs root, mmdebstrap, and the tools of `make up` built on this machine. About 25 minutes, beside nothing else.
"""

from typing import Any

import pytest

from tests.proofs import ways
from tests.proofs.records import Proof

PROOF = Proof("fresh-root", guards=ways.GUARDS)


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("suite", ways.SUITES)
def test_the_quick_ways_answer_on_an_empty_debian(suite: str, figures: dict[str, Any]) -> None:
    with ways.fresh_checkout(suite) as root:
        tried = ways.try_it(root, ways.readme_command("make try"))
        again = ways.try_it(root, ways.readme_command("make try"))
        figures[f"{suite} make try"] = {"cold": tried.as_figures(), "warm": again.as_figures()}
        cold, warm = ways.up_and_down(root, ways.built_tools(root), 900)
        figures[f"{suite} make up TOOLS"] = {"cold": cold.as_figures(), "warm": warm.as_figures()}
        uvx = ways.wheel(root)
        from_wheel, once_more = ways.try_it(root, uvx), ways.try_it(root, uvx)
        figures[f"{suite} {ways.WITH_UVX}"] = {"cold": from_wheel.as_figures(), "warm": once_more.as_figures()}
        ways.without_what_c_compiles(root)
        compiled, _ = ways.up_and_down(root, ways.readme_command("make up"), 1200)
        figures[f"{suite} make up, C and images from source"] = compiled.as_figures()
    assert max(tried.wall_s, from_wheel.wall_s) <= 120
    assert cold.wall_s <= 240
