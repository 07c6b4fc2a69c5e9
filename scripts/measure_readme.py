"""Run the built-in recipes and write their figures and the picture into the README.

    python scripts/measure_readme.py            a few minutes on two CPU cores
    python scripts/measure_readme.py --runs DIR  keep the runs there, and use those that are already finished

Each recipe is the real command in a process of its own; the figures are read from what the run wrote.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "images" / "reviews_apa.png"
BEGIN, END = "<!-- figures: written by scripts/measure_readme.py -->\n", "<!-- end of figures -->"
RECIPES = ("reviews_apa", "reviews_ppo", "reviews_awr")
COLUMNS = ("eval/reward", "eval/evaluator", "eval/kl", "eval/entropy", "eval/unique_fraction")


def run(recipe: str, folder: Path) -> None:
    """Run one recipe unless `folder` holds it finished; its wall-clock seconds go beside it."""
    if (folder / "final").exists():
        return
    start = time.perf_counter()
    command = [Path(sys.executable).parent / "apa-train", f"config={recipe}", f"output_dir={folder}"]
    subprocess.run(command, check=True)
    folder.with_suffix(".seconds").write_text(f"{time.perf_counter() - start:.0f}", encoding="utf-8")


def figures(recipe: str, folder: Path) -> str:
    """One row of the table: every column before → after."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    judged = [line for line in lines if "eval/kl" in line]
    cells = [f"{judged[0][name] + 0.0:.2f} → {judged[-1][name]:.2f}".replace("-0.00", "0.00") for name in COLUMNS]
    seconds = folder.with_suffix(".seconds").read_text(encoding="utf-8")
    return f"| `{recipe}` | {' | '.join(cells)} | {seconds} s |"


def hardware() -> str:
    import torch

    return f"{os.cpu_count()} CPU cores ({platform.machine()}), torch {torch.__version__}, one seed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=None, help="folder for the runs (default: a temporary one)")
    runs = parser.parse_args().runs or Path(tempfile.mkdtemp(prefix="apa-readme-"))
    for recipe in RECIPES:
        run(recipe, runs / recipe)
    table = [
        f"Measured on {hardware()}, on held-out prompts, before → after (KL: nats a response; entropy: nats a token):",
        "",
        "| recipe | reward | separate evaluator | KL | entropy | different responses | wall clock |",
        "|---|---|---|---|---|---|---|",
        *(figures(recipe, runs / recipe) for recipe in RECIPES),
        "",
    ]
    before, rest = README.read_text(encoding="utf-8").split(BEGIN)
    README.write_text(before + BEGIN + "\n".join(table) + END + rest.split(END)[1], encoding="utf-8")
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(runs / "reviews_apa" / "plots" / "overview.png", PICTURE)


if __name__ == "__main__":
    main()
