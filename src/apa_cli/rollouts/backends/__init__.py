"""How responses are drawn: our own decode loop (hf, static), transformers' continuous batching (paged), vLLM."""
