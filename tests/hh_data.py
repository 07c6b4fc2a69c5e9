"""Where tests find dialogues in the format of Anthropic's HH data."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REAL = ROOT.parent / "shared" / "data" / "hh" / "harmless-base-test.jsonl.gz"
SAMPLE = ROOT / "tests" / "data" / "hh_sample.jsonl"


def hh_file() -> Path:
    """The real file where a copy lies beside the repository, otherwise our own 84 dialogues in the same format."""
    return REAL if REAL.is_file() else SAMPLE
