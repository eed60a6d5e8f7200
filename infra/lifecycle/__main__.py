"""The commands of the Makefile and of the wheel that are about a stack on a cluster: from nothing to a chat answer, and back."""

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext

import httpx

from infra.analysis import preview as rendering
from infra.engine.changes import RefusedError
from infra.engine.errors import CliError, CommandError
from infra.lifecycle import backup, explain, keys, liveness, looking, own_cluster, usage
from infra.lifecycle.arguments import parser
from infra.lifecycle.bring_up import say
from infra.lifecycle.target import Target, target
from infra.program.settings.committed import stack_config
from infra.program.settings.section import SettingsError
from modelfleet_outputs import OutputsError

_OF_A_TARGET = {
    "usage": usage.show,
    "logs": looking.logs,
    "shell": looking.shell,
    "debug": looking.debug,
    "scan": looking.scan,
    "cache-password": keys.rotate_cache_password,
    "backup": backup.backup,
    "restore": backup.restore,
}


def _clean_cache(options: argparse.Namespace) -> int:
    from devcluster import clean  # noqa: PLC0415 (who has a cluster needs nothing of the embedded one)

    return clean.main(["--yes"] if options.yes else [])


def _preview(options: argparse.Namespace) -> int:
    try:
        _take_tools(options)
    except CommandError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return rendering.main()


def _take_tools(options: argparse.Namespace) -> None:
    """For who has no Pulumi, and does not want to compile one. Raises CommandError."""
    if options.tools:
        from infra.engine import own_tools  # noqa: PLC0415 (who has a Pulumi needs nothing of the embedded cluster)

        own_tools.take(options.tools)


_WITHOUT_A_TARGET = {"explain": explain.look, "clean-cache": _clean_cache}
_LASTING = ("up", "down", "check", "backup", "restore")


def _run(command: str, cluster: Target, options: argparse.Namespace) -> int:
    """The exit status. Raises what went wrong."""
    if options.context:
        _take_tools(options)
    if command == "status":
        return cluster.status()
    if command == "preview":
        deployment = own_cluster.on_context(options.context, options.stack)
        print("\n".join(deployment.preview() or ["nothing would change"]))
    elif command == "check":
        if not options.context:
            raise CommandError("check: got no CONTEXT, want a cluster of your own to try; run make check CONTEXT=name")
        own_cluster.OwnCluster(options.stack, options.context).check(options)
    elif command == "key":
        keys.change(cluster.deployment(), options.name, revoke=options.revoke)
    elif command in _OF_A_TARGET:
        _OF_A_TARGET[command](cluster, options)
    elif command == "down":
        cluster.down(options)
    else:
        started = time.monotonic()
        # Before anything is made for a stack that is not there.
        stack_config(options.stack)
        cluster.up(options)
        say(f"up: done in {time.monotonic() - started:.0f} s")
    return 0


def _explain(cluster: Target) -> None:
    """What `make explain` says, after an error; nothing when it has nothing to say or cannot look."""
    deployment = cluster.deployment()
    for finding in deployment.findings() if deployment else []:
        if finding.cause != "namespace-missing":
            print(f"cause: {finding}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    return run(parser("python -m infra.lifecycle").parse_args(arguments))


def run(options: argparse.Namespace) -> int:
    """The exit status of a command; what went wrong is said."""
    if found := _WITHOUT_A_TARGET.get(options.command):
        return found(options)
    if options.command == "preview" and not options.context:
        return _preview(options)
    cluster = target(options.stack, options.context)
    try:
        with liveness.heard() if options.command in _LASTING else nullcontext():
            return _run(options.command, cluster, options)
    except (CommandError, RefusedError, SettingsError, OutputsError) as error:
        print(f"error: {error}", file=sys.stderr)
    except CliError as error:
        print(f"error: {error}", file=sys.stderr)
        _explain(cluster)
    except httpx.HTTPError as error:
        print(f"error: chat: got {error}, want an answer; see the causes below, or run make explain", file=sys.stderr)
        _explain(cluster)
    except KeyboardInterrupt:
        # How who follows logs ends that.
        return 130
    except OSError as error:
        # A full disk, most of all: what was half made is finished by the next up, and removed by down.
        print(
            f"error: {error.filename or 'disk'}: got {error.strerror or error}, want to use it; mend that",
            file=sys.stderr,
        )
    return 1


if __name__ == "__main__":
    sys.exit(main())
