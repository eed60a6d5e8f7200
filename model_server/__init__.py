"""The model server: one model behind OpenAI's chat API, with bounded admission, an exact-match cache and metrics."""
