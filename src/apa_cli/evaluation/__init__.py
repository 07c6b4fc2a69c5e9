"""Judging a policy on prompts that training never saw."""
