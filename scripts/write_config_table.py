"""Write the table of all configuration keys into docs/configuration.md, from the schema's own help.

python scripts/write_config_table.py          rewrite the part between the two markers
python scripts/write_config_table.py --check  exit 1 if it is out of date
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from apa_cli.config.keys import Key, all_keys

PAGE = Path(__file__).parent.parent / "docs" / "configuration.md"
BEGIN, END = "<!-- keys: written by scripts/write_config_table.py -->\n", "<!-- end of keys -->"


def shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if value == MISSING:
        return "–"
    return f"{value:g}" if isinstance(value, float) else str(value)


def row(key: Key) -> str:
    help = key.help
    if key.choices:
        help += f" ({', '.join(key.choices)})"
    return f"| `{key.name}` | `{shown(key.default)}` | {help} |"


def table() -> str:
    return "\n".join(["| key | default | what it is |", "|---|---|---|", *map(row, all_keys().values())]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    old, after = rest.split(END)
    if check:
        return int(old != table())
    PAGE.write_text(before + BEGIN + table() + END + after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
