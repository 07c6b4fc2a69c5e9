"""apa-train's run, and what it drew at random: responses as its reward function sees them, and shuffled orders."""

import json
from unittest.mock import patch

import torch

from apa_cli.config.compose import compose_train
from apa_cli.training.run import train

_rollouts, _orders = [], []


def reward(prompts, completions, completion_ids):
    """Scores that depend on every token."""
    scores = [sum(token * 37 % 11 for token in ids) / 10 - len(ids) ** 2 / 15 for ids in completion_ids]
    _rollouts.append({"prompts": prompts, "responses": completion_ids, "scores": scores})
    return scores


def reward_of_more_than_one_token(prompts, completions, completion_ids):
    """The same; a response of one token has no score."""
    scores = reward(prompts, completions, completion_ids)
    scores[:] = [None if len(ids) == 1 else score for ids, score in zip(completion_ids, scores, strict=True)]
    return scores


def recorded_run(settings, folder):
    """Run `settings` in `folder`: what it drew for each iteration, and its metrics."""
    _rollouts.clear()
    _orders.clear()
    randperm = torch.randperm

    def shuffle(*arguments, **options):
        order = randperm(*arguments, **options)
        _orders.append(order.tolist())
        return order

    overrides = ["config=own", f"output_dir={folder}", *(f"{key}={_written(value)}" for key, value in settings.items())]
    with patch("torch.randperm", shuffle), patch("matplotlib.figure.Figure.savefig"):
        train(compose_train(overrides), overrides)
    passes = settings["training.epochs_per_rollout"]
    assert len(_rollouts) == settings["training.iterations"]
    assert len(_orders) == len(_rollouts) * passes
    recorded = [{**r, "orders": _orders[i * passes : (i + 1) * passes]} for i, r in enumerate(_rollouts)]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return recorded, lines


def _written(value):
    return json.dumps(value).replace('"', "") if isinstance(value, list) else "null" if value is None else str(value)
