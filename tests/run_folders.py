"""Run folders made by hand, as apa-train leaves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf


def row(iteration: int, **metrics: float) -> dict[str, Any]:
    """`eval_kl=1` becomes eval/kl; what names no folder of metrics is one of the rollout's."""
    renamed = {name.replace("_", "/", 1): value for name, value in metrics.items()}
    return {"iteration": iteration, **renamed}


def write_run(
    folder: Path,
    rows: list[dict[str, Any]],
    *,
    finished: bool = True,
    overrides: tuple[str, ...] = (),
    failed: str = "",
    **config: Any,
) -> Path:
    """`objective__kl_lambda=0.1` sets objective.kl_lambda."""
    folder.mkdir(parents=True)
    settings = {"seed": 0, "objective__name": "apa", "objective__kl_lambda": 0.3, "objective__kl_coef": 0.05, **config}
    tree = OmegaConf.create({"output_dir": str(folder)})
    for key, value in settings.items():
        OmegaConf.update(tree, key.replace("__", "."), value, force_add=True)
    OmegaConf.save(tree, folder / "config.yaml")
    OmegaConf.save(OmegaConf.create(list(overrides)), folder / "overrides.yaml")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows), encoding="utf-8")
    if finished:
        summary = {"iterations": rows[-1]["iteration"], "seconds": 12.5}
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    if failed:
        (folder / "failed.json").write_text(
            json.dumps({"error": failed, "overrides": list(overrides)}), encoding="utf-8"
        )
    return folder


def write_grid(folder: Path, rewards: dict[tuple[float, int], tuple[float, float]]) -> Path:
    """Runs of one iteration: (λ, seed) to (KL, reward) at the end; all begin with reward 0."""
    for (kl_lambda, seed), (kl, reward) in rewards.items():
        rows = [
            row(0, eval_reward=0.0, eval_evaluator=-0.5, eval_kl=0.0, eval_entropy=2.0),
            row(1, reward_mean=reward, kl_to_init=kl, policy_entropy=1.0)
            | row(1, eval_reward=reward, eval_evaluator=reward / 2, eval_kl=kl, eval_entropy=1.0),
        ]
        name = f"objective.kl_lambda={kl_lambda},seed={seed}"
        overrides = ("training.iterations=1", *name.split(","))
        write_run(folder / name, rows, overrides=overrides, seed=seed, objective__kl_lambda=kl_lambda)
    return folder
