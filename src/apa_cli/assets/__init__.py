"""The built-in task: a grammar of short restaurant reviews, and the tiny models and prompts made from it."""
