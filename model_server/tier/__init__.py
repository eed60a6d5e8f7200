"""The tier of vLLM's KV cache on a disk, within a size: what writes it (`vllm_tier`), what bounds it (`keeper`), and what they agree by."""
