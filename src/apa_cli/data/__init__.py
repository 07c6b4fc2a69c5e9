"""Prompts: from files, the Hub or the built-in task, to shuffled batches of token ids."""

from apa_cli.data.loading import load_prompts
from apa_cli.data.prompts import Prompt, PromptBatch, PromptSet, PromptStream, collate

__all__ = ["Prompt", "PromptBatch", "PromptSet", "PromptStream", "collate", "load_prompts"]
