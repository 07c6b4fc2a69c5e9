"""The README's figures: the built-in recipes, before and after."""

from __future__ import annotations

import shutil
from pathlib import Path

from studies.page import table
from studies.runs import Found, Setting, Size

title = "the README's table and picture: the three built-in recipes as they are"
duration = "3 runs, a few minutes on two CPU cores"
PAGE = "README.md"
SEEDS = 1
COLUMNS = {"reward": "reward", "separate evaluator": "evaluator", "KL": "kl", "entropy": "entropy",
           "different responses": "unique_fraction"}  # fmt: skip


def settings(size: Size) -> list[Setting]:
    return [Setting(name=f"readme_{each}", recipe=f"reviews_{each}", keys={}) for each in ("apa", "ppo", "awr")]


def lines(found: Found, size: Size, pictures: Path) -> list[str]:
    rows = []
    for setting in settings(size):
        for run in found[setting.name][:1]:
            pairs = [(run.first(f"eval/{name}") or 0.0, run.last(f"eval/{name}")) for name in COLUMNS.values()]
            cells = [f"{before + 0.0:.2f} → {after:.2f}".replace("-0.00", "0.00") for before, after in pairs]
            rows.append([f"`{setting.recipe}`", *cells, f"{run.summary['seconds']:.0f} s"])
            picture = run.folder / "plots" / "overview.png"
            if setting.recipe == "reviews_apa" and picture.exists():
                pictures.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(picture, pictures / "reviews_apa.png")
    words = "On held-out prompts, before → after (KL: nats per response; entropy: nats per token):"
    return [words, "", *table(["recipe", *COLUMNS, "wall clock"], rows)]
