"""Prometheus metrics of GPUs (NVML), the cache server and the models that Ollama holds in memory."""
