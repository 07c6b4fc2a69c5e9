"""The configuration of a run: schema, checks, and composition with Hydra. Nothing here imports torch."""
