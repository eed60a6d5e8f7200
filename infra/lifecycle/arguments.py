"""What can be said to the commands about a stack: the only list of it. The Makefile and the wheel pass it on.

The standard library alone: the wheel shows it before the packages that the commands need are there.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

COMMANDS: Mapping[str, str] = {
    "up": "start the embedded cluster, deploy, print a chat answer; --context: on your own cluster",
    "down": "remove what up made, and nothing else",
    "status": "say what runs, and where to reach it",
    "explain": "say why it is not ready, one sentence a cause",
    "preview": "check the stacks' settings and objects without a cluster; --context: what up would change there",
    "check": "try what your cluster does before a stack is there",
    "key": "make a key of the API server, and print it once",
    "cache-password": "another password of the cache server",
    "usage": "say what each key has used",
    "logs": "print what pods have written",
    "shell": "a shell in a pod of a stack that is not for production",
    "debug": "a shell in a further container of such a pod",
    "scan": "look for vulnerabilities in the images that run",
    "backup": "keep state, keys, catalog and usage in an encrypted restic repository",
    "restore": "put them back where there is no such stack",
    "clean-cache": "say what the cache holds, ask, and free it",
}
"""Command to what it does."""


def parser(program: str) -> argparse.ArgumentParser:
    """Of `program COMMAND [options]`."""
    listed = "\n".join(f"  {name:16}{does}" for name, does in COMMANDS.items())
    made = argparse.ArgumentParser(prog=program, epilog=f"commands:\n{listed}", formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("command", metavar="COMMAND", choices=COMMANDS)
    made.add_argument("--stack", default="dev", help="default: dev; its settings are in Pulumi.<stack>.yaml")
    made.add_argument("--nodes", type=int, default=2)
    made.add_argument("--runtime", default="", help="with up: container runtime of the embedded nodes; default: containerd")
    made.add_argument("--context", default="", help="default: the embedded cluster")
    made.add_argument("--allow-data-loss", default="", help="objects (Kind/name) whose data may go")
    made.add_argument("--take", default="", help="objects (Kind/name) that are there and that the stack takes over")
    made.add_argument("--registry-auth", "--pull-auth", default="", help="file with the logins of private registries")
    made.add_argument("--tools", default="", help="FILE-or-https-address@sha256:HEX of an archive of built tools: nothing is compiled")
    made.add_argument(
        "--image", default="", help="with check: one with Python; default: the stack's API server. With debug: default: the container's own"
    )
    made.add_argument("--name", default="", help="with key: whose it is")
    made.add_argument("--revoke", action="store_true", help="with key: take it back")
    made.add_argument("--days", default="7", help="with usage: how many, today with them")
    made.add_argument("--csv", default="", help="with usage: a file for the rows; 1: print them in place of the table")
    made.add_argument("--prometheus", default="", help="with usage: address of another Prometheus; default: the stack's own")
    made.add_argument("--of", default="", help="with logs, shell and debug: a component or a pod; logs of all without it")
    made.add_argument("--since", default="10m", help="with logs: how far back")
    made.add_argument("--follow", action="store_true", help="with logs: until Ctrl-C")
    made.add_argument("--container", default="", help="with shell and debug: a container of the pod; default: its first")
    made.add_argument("--to", default="", help="with backup: a restic repository; default: RESTIC_REPOSITORY")
    made.add_argument("--from", default="", dest="source", help="with restore: the same")
    made.add_argument("--snapshot", default="latest", help="with restore: which one; restic snapshots lists them")
    made.add_argument("--forget", action="store_true", help="with down: the cluster behind the context is another one now")
    made.add_argument("--yes", action="store_true", help="ask nothing: install missing packages, delete what is shown")
    made.add_argument("--namespace", help="with explain: default: the stack's")
    made.add_argument("--key-file", type=Path, help="with explain: the API key to try; default: the one that up made")
    return made
