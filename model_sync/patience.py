"""How long a source is waited for, unless the configuration says something else."""

ATTEMPTS = 8
"""Without progress between them: about a minute."""
TIMEOUT_S = 60.0
"""How long a source may be silent, and what its handshake and the head of an answer may take."""
