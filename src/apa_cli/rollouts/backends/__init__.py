"""Backends of generation: our own decode loop (hf, static), or vLLM."""
