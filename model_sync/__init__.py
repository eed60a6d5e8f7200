"""Verified copies of Ollama model stores. Standard library only: it runs in init containers and Jobs."""
