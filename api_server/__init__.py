"""The API server: OpenAI's chat API in front of the fleet. It checks keys, picks an upstream, and forwards bytes."""
