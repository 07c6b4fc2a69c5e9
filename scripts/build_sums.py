"""Write the built-in sums, src/apa_cli/assets/sums: "What is 17 + 25?" for all pairs of numbers from 2 to 49.

A pair is held out together with its mirror image, so that no held-out sum was trained on the other way round.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "src" / "apa_cli" / "assets" / "sums"
NUMBERS, HELD_OUT, SEED = range(2, 50), 128, 0  # HELD_OUT: pairs without regard to order


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=FOLDER, help=f"folder to write (default: {FOLDER})")
    folder: Path = parser.parse_args().output
    rng = random.Random(SEED)
    unordered = list(itertools.combinations_with_replacement(NUMBERS, 2))
    held_out = set(rng.sample(unordered, HELD_OUT))
    pairs = list(itertools.product(NUMBERS, NUMBERS))
    rng.shuffle(pairs)
    parts: dict[str, list[str]] = {"prompts.jsonl": [], "eval_prompts.jsonl": []}
    for a, b in pairs:
        row = {"prompt": f"What is {a} + {b}?", "answer": str(a + b)}
        parts["eval_prompts.jsonl" if (min(a, b), max(a, b)) in held_out else "prompts.jsonl"].append(json.dumps(row))
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        (folder / name).write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
