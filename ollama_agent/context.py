"""What the probe reads: for each model of the catalog, the tokens that the server allocated."""

from dataclasses import asdict
from typing import Any

from ollama_agent.catalog import Model
from ollama_agent.replica import Replica


def context(replica: Replica) -> dict[str, Any]:
    return {
        "replica": replica.settings.replica,
        "revision": replica.settings.revision,
        "reason": replica.unready_reason(),
        "models": [
            {
                "name": model.name,
                "context_length": model.context_length,
                "effective_context": _effective(replica, model),
                "problem": replica.problems.line(model.name),
            }
            for model in replica.catalog.models
        ],
        "problems": [{"model": name, **asdict(problem)} for name, problem in replica.problems.all().items()],
    }


def _effective(replica: Replica, model: Model) -> int | None:
    found = replica.memory.loaded.get(model.name)
    if found is not None and model.matches(found.digest):
        return found.context_length
    proof = replica.proofs.get(model.name)
    return proof.context_length if proof is not None and model.matches(proof.digest) else None
