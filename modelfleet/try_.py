"""`modelfleet try`: a gateway, a model server and a model on this machine, until Ctrl-C. docs/try.md says what runs and what is left."""

import json
import os
import shlex
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from modelfleet import environment, fleet, host, models
from modelfleet.report import Step, Stopped, UserError, say

QUESTION = "What is the capital of France? Answer in one short sentence."


@dataclass(frozen=True)
class Options:
    model: Path | None
    port: int | None
    context: int | None
    once: bool


def run(options: Options) -> int:
    """Exit status. Raises UserError."""
    started = time.monotonic()
    given = models.own(options.model) if options.model is not None else None
    cache = host.cache()
    say(f"what is kept lies in {cache}")
    python = environment.python(cache)
    model = given or models.default(cache, python)
    context = models.context(model, options.context)
    models.require_memory(model)
    serving = False
    try:
        with fleet.running(cache, python, model, context, options.port) as served:
            answer = _first_answer(served)
            say(f"the first answer came after {time.monotonic() - started:.0f} s")
            print(f"\n{model.id}: {answer or '(an empty answer)'}\n", flush=True)
            if not options.once:
                serving = True
                print(_instructions(served, cache), flush=True)
                _stay(served)
    except Stopped as stopped:
        say(f"stopped; what is kept: {cache / 'try'} and {cache / 'models'}")
        # Once everything runs, Ctrl-C is the ordinary end.
        return 0 if serving else 128 + stopped.number
    return 0


def _first_answer(served: fleet.Fleet) -> str:
    """Asked in a thread, so that a slow model is waited for with a word now and then. Raises ServiceError."""
    found: list[str | UserError] = []

    def ask() -> None:
        try:
            found.append(served.chat(QUESTION))
        except UserError as error:
            found.append(error)

    step = Step(f"asking {served.model.id}: {QUESTION}")
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    while asking.is_alive():
        asking.join(0.05)
        served.require_running()
        step.tick()
    if isinstance(found[0], UserError):
        raise found[0]
    return found[0]


def _stay(served: fleet.Fleet) -> None:
    """Until a signal, or until whoever started us is gone: uv and make pass no SIGKILL on. Raises ServiceError."""
    parent = os.getppid()
    outlives_it = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    while outlives_it or os.getppid() == parent:
        served.require_running()
        time.sleep(0.2)


def _instructions(served: fleet.Fleet, cache: Path) -> str:
    key = shlex.quote(str(served.key_file))
    body = shlex.quote(json.dumps({"model": served.model.id, "messages": [{"role": "user", "content": "Hello"}]}))
    return f"""\
endpoint:   {served.url}
page:       {served.page}
model:      {served.model.id}
key:        in the file {served.key_file}
curl:       sed 's/^/Authorization: Bearer /' {key} | curl {served.url}/chat/completions -H @- \\
              -H 'Content-Type: application/json' -d {body}
openai:     from pathlib import Path
            from openai import OpenAI
            client = OpenAI(base_url={served.url!r}, api_key=Path({str(served.key_file)!r}).read_text().strip())
            chat = client.chat.completions.create(model={served.model.id!r}, messages=[{{"role": "user", "content": "Hello"}}])
            print(chat.choices[0].message.content)
OpenHands:  export LLM_MODEL=openai/{served.model.id} LLM_BASE_URL={served.url}
            export LLM_API_KEY="$(cat {key})"
kept:       {cache / "try"} and {cache / "models"}; nothing else of this machine is changed
stop:       Ctrl-C"""
