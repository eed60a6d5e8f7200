"""Rendered Kubernetes objects: their schemas, what changes between two renderings, and what they ask for."""
