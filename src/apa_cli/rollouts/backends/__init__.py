"""How responses are drawn: our own decode loop (hf, static), or vLLM."""
