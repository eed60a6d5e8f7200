"""Looks at renderings, which need no cluster, and at clusters that run."""
