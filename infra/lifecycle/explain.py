"""`make explain`: one sentence for each cause of what is not ready.

Ends with 0 when everything is ready, 1 with findings, 2 without a cluster.
"""

import argparse
import sys

from infra.analysis.explain.report import report
from infra.analysis.explain.snapshot import SnapshotError
from infra.engine.errors import CommandError
from infra.lifecycle.target import target
from infra.program.cluster import identity
from infra.program.settings.section import SettingsError


def look(options: argparse.Namespace) -> int:
    """Print the causes. Returns the exit status."""
    try:
        deployment = target(options.stack, options.context).deployment()
        if deployment is None:
            print("error: cluster: got none, want one that runs; run make up, or name yours: make explain CONTEXT=name", file=sys.stderr)
            return 2
        identity(deployment.context, deployment.kubeconfig)
        key_file = options.key_file or deployment.key_file
        key = key_file.read_text().strip() if options.key_file or key_file.exists() else None
        return int(report(deployment.context, deployment.kubeconfig, options.namespace or deployment.namespace, key) > 0)
    except OSError as error:
        print(f"error: --key-file: got {error.strerror} for {error.filename}, want a file with one key; name another", file=sys.stderr)
        return 2
    except (SnapshotError, SettingsError, CommandError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
