"""The quick ways to an answer, on an empty Debian: plain processes, and the embedded cluster from built tools; from a checkout, and from
the wheel.

Then what depends on Debian's release is made from source: what its C compiler compiles, and the images.

Needs root, mmdebstrap, and the tools of `make up` built on this machine. About half an hour, beside nothing else.
"""

from typing import Any

import pytest

from tests.proofs import from_wheel, ways
from tests.proofs.records import Proof

PROOF = Proof("fresh-root", guards=(*ways.GUARDS, "tests/proofs/from_wheel.py"))


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("suite", ways.SUITES)
def test_the_quick_ways_answer_on_an_empty_debian(suite: str, figures: dict[str, Any]) -> None:
    with ways.fresh_checkout(suite) as root:
        tried = ways.try_it(root, ways.readme_command("make try"))
        again = ways.try_it(root, ways.readme_command("make try"))
        figures[f"{suite} make try"] = {"cold": tried.as_figures(), "warm": again.as_figures()}
        with_tools = ways.built_tools(root)
        cold, warm = ways.up_and_down(root, with_tools, 900)
        figures[f"{suite} make up TOOLS"] = {"cold": cold.as_figures(), "warm": warm.as_figures()}
        uvx = ways.wheel(root)
        uvx_try, once_more = ways.try_it(root, uvx), ways.try_it(root, uvx)
        figures[f"{suite} {ways.WITH_UVX}"] = {"cold": uvx_try.as_figures(), "warm": once_more.as_figures()}
        wheel_up, wheel_again = from_wheel.up_and_down(root, with_tools)
        figures[f"{suite} {from_wheel.UP_WITH_UVX}"] = {"cold": wheel_up.as_figures(), "warm": wheel_again.as_figures()}
        ways.without_what_c_compiles(root)
        compiled, _ = ways.up_and_down(root, ways.readme_command("make up"), 1200)
        figures[f"{suite} make up, C and images from source"] = compiled.as_figures()
    assert max(tried.wall_s, uvx_try.wall_s) <= 120
    assert max(cold.wall_s, wheel_up.wall_s) <= 240
