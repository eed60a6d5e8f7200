"""The policy pack: `pulumi preview --policy-pack infra/analysis/policy`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from pulumi_policy import PolicyPack

from infra.analysis.policy.pack import policies

PolicyPack("modelfleet", policies())
