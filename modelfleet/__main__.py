"""`modelfleet COMMAND`, also `python -m modelfleet COMMAND`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from infra.lifecycle.arguments import COMMANDS
from modelfleet import host
from modelfleet.report import Stopped, UserError, catch_signals, say


def _try(options: argparse.Namespace) -> int:
    host.require_usable()
    # Only now: another system has not even the modules that these import.
    from modelfleet import try_  # noqa: PLC0415

    return try_.run(try_.Options(options.model, options.port, options.context, options.once))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="modelfleet", description="A private fleet of language models for coding agents.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    trying = commands.add_parser("try", help="gateway, model server and a model as plain processes, until Ctrl-C")
    trying.add_argument("--model", type=Path, metavar="FILE.gguf", help="a model of your own instead of the small one that is fetched")
    trying.add_argument("--port", type=int, help="of the gateway; without it, 8000 or the next that is free")
    trying.add_argument("--context", type=int, help="tokens of one request with its answer; without it, the model's own, 8192 at most")
    trying.add_argument("--once", action="store_true", help="end after the first answer")
    trying.set_defaults(run=_try)
    for name, does in COMMANDS.items():
        commands.add_parser(name, help=does, add_help=False)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given and given[0] in COMMANDS:
            # Only now: `try` needs none of it.
            from modelfleet import commands  # noqa: PLC0415

            return commands.run(given)
        options = _parser().parse_args(given)
        catch_signals()
        return options.run(options)
    except Stopped as stopped:
        say("stopped")
        return 128 + stopped.number
    except KeyboardInterrupt:
        say("stopped")
        return 130
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except BrokenPipeError:
        print("error: standard output: got closed, want a reader until the end; do not cut it off", file=sys.stderr)
    except OSError as error:
        want = "want to read and write there; free space, or set XDG_CACHE_HOME to another directory"
        print(f"error: {error.filename or host.cache_path()}: got {error.strerror or error}, {want}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
