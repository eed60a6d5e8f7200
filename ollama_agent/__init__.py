"""Beside each Ollama server: says when its models can answer, lets requests end before it stops, and reports what it holds."""
