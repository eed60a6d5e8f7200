"""`modelfleet up` from the wheel in a fresh root: a directory and a cache that are empty, and no checkout but for where the wheel lies."""

from tests.proofs.empty_debian import StepError
from tests.proofs.fresh_root import CHECKOUT, Cost, FreshRoot
from tests.proofs.ways import ANSWER, SILENCE_S

UP_WITH_UVX = "uvx --from 'dist/modelfleet-*.whl[up]' modelfleet up --tools"
_DIRECTORY = CHECKOUT.with_name("fleet")
_MODELFLEET = f'{CHECKOUT}/.venv/bin/uvx --from "$(ls {CHECKOUT}/dist/modelfleet-*.whl)[up]" modelfleet'


def up_and_down(root: FreshRoot, make_up: str) -> tuple[Cost, Cost]:
    """To an answer through a cluster of one node, again, and down. What the first and the second one cost.

    `make_up`: the command that names the archive of tools, in the checkout.
    """
    root.run(f"mkdir {_DIRECTORY} && cd {_DIRECTORY} && {_MODELFLEET} clean-cache --yes")
    up = f"cd {_DIRECTORY} && {_MODELFLEET} up --tools {CHECKOUT}/{make_up.partition('TOOLS=')[2]} --nodes 1 --yes"
    said, cold = root.run(up, 900)
    if cold.longest_silence_s > SILENCE_S:
        raise StepError(f"{root.suite}: {up}: got {cold.longest_silence_s:.0f} s of silence after {cold.silent_after.strip()!r}, want less")
    for wanted in (f"{_DIRECTORY}/Pulumi.dev.yaml is new: ", "\nstop:      modelfleet down\n"):
        if wanted not in said:
            raise StepError(f"{root.suite}: {up}: got no {wanted!r}, want it; it said:\n{said[-4000:]}")
    if not ANSWER.search(said):
        raise StepError(f"{root.suite}: {up}: got no answer, want one; it said:\n{said[-4000:]}")
    _, warm = root.run(up, 600)
    # Also without a terminal, and of the cluster of this directory alone.
    root.run(f"cd {_DIRECTORY} && {_MODELFLEET} status && {_MODELFLEET} explain && {_MODELFLEET} down", 180)
    if left := root.processes():
        raise StepError(f"{root.suite}: modelfleet down: got processes {left}, want none")
    return cold, warm
