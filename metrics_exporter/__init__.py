"""Prometheus metrics of GPUs (NVML) and the cache server."""
