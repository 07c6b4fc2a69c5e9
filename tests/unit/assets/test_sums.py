"""The built-in sums are what their script writes, and none is held out that was trained on in the other order."""

import json
import subprocess
import sys
from pathlib import Path

from apa_cli import assets

SUMS = Path(assets.__file__).parent / "sums"
SCRIPT = Path(__file__).parents[3] / "scripts" / "build_sums.py"


def test_sums_are_right_and_held_out_in_both_orders(tmp_path):
    subprocess.run([sys.executable, SCRIPT, "--output", tmp_path], check=True)
    parts = []
    for name in ("prompts.jsonl", "eval_prompts.jsonl"):
        text = (SUMS / name).read_text(encoding="utf-8")
        assert text == (tmp_path / name).read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.splitlines()]
        sums = [tuple(map(int, row["prompt"].removeprefix("What is ").rstrip("?").split(" + "))) for row in rows]
        assert [str(a + b) for a, b in sums] == [row["answer"] for row in rows]
        parts.append({frozenset(pair) for pair in sums})
    assert not parts[0] & parts[1] and len(parts[1]) == 128
