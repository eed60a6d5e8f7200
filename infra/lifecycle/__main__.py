"""The commands of the Makefile that are about a stack on a cluster: from nothing to a chat answer, and back."""

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext

import httpx

from infra.engine.changes import RefusedError
from infra.engine.errors import CliError, CommandError
from infra.lifecycle import backup, keys, liveness, looking, own_cluster, usage
from infra.lifecycle.bring_up import say
from infra.lifecycle.target import Target, target
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
_LASTING = ("up", "down", "check", "backup", "restore")


def _run(command: str, cluster: Target, options: argparse.Namespace) -> int:
    """The exit status. Raises what went wrong."""
    if command == "status":
        return cluster.status()
    if command == "preview":
        if not options.context:
            raise CommandError("preview: got no CONTEXT, want a cluster to compare with; run make preview CONTEXT=name")
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
    parser = argparse.ArgumentParser(prog="python -m infra.lifecycle", description=__doc__)
    parser.add_argument("command", choices=["up", "down", "status", "preview", "check", "key", *_OF_A_TARGET])
    parser.add_argument("--stack", default="dev")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--runtime", default="", help="with up: container runtime of the embedded nodes; default: containerd")
    parser.add_argument("--context", default="", help="default: the embedded cluster")
    parser.add_argument("--allow-data-loss", default="", help="objects (Kind/name) whose data may go")
    parser.add_argument("--take", default="", help="objects (Kind/name) that are there and that the stack takes over")
    parser.add_argument("--registry-auth", default="", help="file with the logins of private registries")
    parser.add_argument("--tools", default="", help="FILE-or-https-address@sha256:HEX of an archive of built tools: nothing is compiled")
    parser.add_argument(
        "--image", default="", help="with check: one with Python; default: the stack's API server. With debug: default: the container's own"
    )
    parser.add_argument("--name", default="", help="with key: whose it is")
    parser.add_argument("--revoke", action="store_true", help="with key: take it back")
    parser.add_argument("--days", default="7", help="with usage: how many, today with them")
    parser.add_argument("--csv", default="", help="with usage: a file for the rows; 1: print them in place of the table")
    parser.add_argument("--prometheus", default="", help="with usage: address of another Prometheus; default: the stack's own")
    parser.add_argument("--of", default="", help="with logs, shell and debug: a component or a pod; logs of all without it")
    parser.add_argument("--since", default="10m", help="with logs: how far back")
    parser.add_argument("--follow", action="store_true", help="with logs: until Ctrl-C")
    parser.add_argument("--container", default="", help="with shell and debug: a container of the pod; default: its first")
    parser.add_argument("--to", default="", help="with backup: a restic repository; default: RESTIC_REPOSITORY")
    parser.add_argument("--from", default="", dest="source", help="with restore: the same")
    parser.add_argument("--snapshot", default="latest", help="with restore: which one; restic snapshots lists them")
    parser.add_argument("--forget", action="store_true", help="with down: the cluster behind the context is another one now")
    parser.add_argument("--yes", action="store_true", help="ask nothing: install missing packages, delete what down shows")
    options = parser.parse_args(arguments)
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
