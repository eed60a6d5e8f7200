"""Models from their sources into the shared store (`publish`, `clean`), and from there to each replica (`follow`, `copy`).

A replica waits for its first pass, and most of a small model's is the start of Python: each command imports what it needs itself.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from model_sync import catalog
from model_sync.patience import ATTEMPTS, TIMEOUT_S
from model_sync.store import StoreError

if TYPE_CHECKING:
    from model_sync.follow import Replica


def _publish(options: argparse.Namespace) -> int:
    from model_sync.access import Access, credentials  # noqa: PLC0415
    from model_sync.declared import declared  # noqa: PLC0415
    from model_sync.fetch import Pace  # noqa: PLC0415
    from model_sync.intake import Intake  # noqa: PLC0415
    from model_sync.proxy import Proxy  # noqa: PLC0415
    from model_sync.publish import Writer  # noqa: PLC0415

    proxy = Proxy(options.proxy, options.no_proxy) if options.proxy else None
    access = Access(credentials(options.credentials) if options.credentials else {}, options.ca_bundle, options.silence_s, proxy)
    pace = Pace(options.rate_limit)
    intake = Intake(options.store, options.capacity, pace, options.verify, options.attempts, access)
    writer = Writer(options.seed, intake)
    problems = writer.publish(*declared(os.environ.get("MODEL_SYNC_MODELS", "")))
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _clean(options: argparse.Namespace) -> int:
    from model_sync.publish import clean  # noqa: PLC0415

    for name in clean(options.store):
        print(f"{name}: removed", flush=True)
    return 0


def _follow(options: argparse.Namespace) -> int:
    """Until SIGTERM. The marker says that the first pass of this very process is over: then servers may start."""
    from model_sync.follow import Replica  # noqa: PLC0415

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # The kernel's note that somebody opens a file under our lease, which we give back at once anyhow.
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    replica = Replica(options.shared, options.store, options.ordinal, options.capacity, options.keep_s, options.server, options.agent)
    options.marker.unlink(missing_ok=True)
    seen: bytes | None = None
    again_at = 0.0
    said: list[str] = []
    while True:
        content = _content(options.shared / catalog.FILE)
        if replica.ask_agent() or content != seen or time.monotonic() >= again_at:
            problems = _pass(replica)
            if problems != said:
                for problem in problems:
                    print(f"error: {problem}", file=sys.stderr, flush=True)
            seen, said = content, problems
            again_at = time.monotonic() + (options.retry_s if problems else options.check_s)
            if _serves(replica, problems):
                options.marker.write_text(_started())
            if not replica.settle():
                again_at = time.monotonic()
        _evict(replica)
        if options.once:
            return 1 if said else 0
        time.sleep(options.poll_s)


def _copy(options: argparse.Namespace) -> int:
    """Before a server starts: all of its model, or an exit status that keeps it from starting."""
    from model_sync.follow import Replica  # noqa: PLC0415

    replica = Replica(options.shared, options.store, 0, options.capacity, keep_s=0, only=options.model)
    for problem in replica.hydrate():
        print(f"error: {problem}", file=sys.stderr)
    _evict(replica)
    held = catalog.read(replica.store)
    return 0 if replica.settle() and held and held.entry(options.model) else 1


def _started() -> str:
    """When this process started, in ticks since boot: field 22 of its stat, see proc(5). A pod's files outlive its containers."""
    return Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]


def _pass(replica: "Replica") -> list[str]:
    try:
        return replica.hydrate()
    except (StoreError, OSError) as error:
        return [str(error)]


def _evict(replica: "Replica") -> None:
    """Room that cannot be made now is made later; a model that needs it says so itself."""
    try:
        replica.evict()
    except OSError as error:
        print(f"warning: {error}", file=sys.stderr, flush=True)


def _serves(replica: "Replica", problems: Sequence[str]) -> bool:
    """A replica without one of its models still serves the others; one that has none waits for its first."""
    try:
        held = catalog.read(replica.store)
    except (StoreError, OSError):
        return False
    return held is not None and (bool(held.models) or not problems)


def _content(path: Path) -> bytes | None:
    """Not its times: a network file system caches those."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m model_sync", description=__doc__)
    commands = parser.add_subparsers(required=True)
    publish = commands.add_parser("publish", help="deliver the models of $MODEL_SYNC_MODELS (JSON) and publish the catalog")
    publish.add_argument("seed", type=Path, help="store of the image, for the source `image`")
    publish.add_argument("store", type=Path)
    publish.add_argument("--capacity", type=int, help="bytes of the volume, where it does not hold itself to them")
    publish.add_argument("--rate-limit", type=int, default=0, help="bytes a second from all sources together; 0 is unlimited")
    publish.add_argument("--verify", action="store_true", help="hash blobs that are already there, too")
    publish.add_argument("--attempts", type=int, default=ATTEMPTS, help="without a new byte between them, before a source is given up")
    publish.add_argument("--silence-s", type=float, default=TIMEOUT_S, help="that a source may keep, or bring less than 64 KiB/s for")
    publish.add_argument("--credentials", type=Path, help="JSON file: host or host:port to a token or user:password")
    publish.add_argument("--ca-bundle", type=Path, help="certificates (PEM) of authorities that are trusted, too")
    publish.add_argument("--proxy", help="http://HOST:PORT that leads to the sources; its credential is among the others, for HOST:PORT")
    publish.add_argument("--no-proxy", action="append", default=[], help="name that is reached without it, with all names below it")
    publish.set_defaults(run=_publish)
    cleaner = commands.add_parser("clean", help="remove what the catalog does not name")
    cleaner.add_argument("store", type=Path)
    cleaner.set_defaults(run=_clean)
    follow = commands.add_parser("follow", help="keep a replica's own store equal to what the catalog says it holds")
    follow.add_argument("shared", type=Path)
    follow.add_argument("store", type=Path)
    follow.add_argument("--ordinal", type=int, required=True, help="of this replica")
    follow.add_argument("--capacity", type=int, help="bytes of the volume, where it does not hold itself to them")
    follow.add_argument("--marker", type=Path, required=True, help="file that has this process' start time once the first pass is over")
    follow.add_argument("--keep-s", type=float, default=60, help="how long bytes stay that the catalog no longer names")
    follow.add_argument("--poll-s", type=float, default=2)
    follow.add_argument("--retry-s", type=float, default=30, help="between attempts at a model that could not be copied")
    follow.add_argument("--check-s", type=float, default=60, help="between looks at manifests and sizes of what is here")
    follow.add_argument("--server", default="http://127.0.0.1:11434", help="the Ollama that reads the store")
    follow.add_argument("--agent", default="http://127.0.0.1:9466", help="the agent of that Ollama, at its port for the pod alone")
    follow.add_argument("--once", action="store_true", help="one pass, then end")
    follow.set_defaults(run=_follow)
    copy = commands.add_parser("copy", help="have one model in a server's own store, whole, and end")
    copy.add_argument("shared", type=Path)
    copy.add_argument("store", type=Path)
    copy.add_argument("model")
    copy.add_argument("--capacity", type=int, help="bytes of the volume, where it does not hold itself to them")
    copy.set_defaults(run=_copy)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    # Other users read the stores, whatever mask our parent had.
    os.umask(0o022)
    try:
        return options.run(options)
    except StoreError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or 'store'}: got {error.strerror}, want to read and write there; check the volume", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
