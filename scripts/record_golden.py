"""Record tests/golden anew, when the figures of a run are meant to change: say which and why in the commit.

python scripts/record_golden.py
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "integration")]

from command import apa_train  # noqa: E402
from test_train_reviews import GOLDEN, GOLDEN_METRICS, QUICK  # noqa: E402


def main() -> None:
    for recipe in ("reviews_apa", "reviews_ppo", "reviews_awr"):
        with tempfile.TemporaryDirectory() as folder:
            run = apa_train(Path(folder) / "run", f"config={recipe}", *QUICK, "tracking.wandb.mode=disabled")
            if run.code:
                sys.exit(run.errors)
            lines = [{name: line[name] for name in GOLDEN_METRICS} for line in run.metrics]
        (GOLDEN / f"{recipe}.json").write_text(json.dumps(lines, indent=2) + "\n", encoding="utf-8")
        print(f"{recipe}: {len(lines)} iterations")


if __name__ == "__main__":
    main()
