"""Write every key of the configuration, from the schema's own help, into docs/configuration.md and into the default
file of each group in configs/.

python scripts/write_config_docs.py          rewrite the part of each file below its marker
python scripts/write_config_docs.py --check  exit 1 if one of them is out of date
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING

from apa_cli.config.keys import Key, all_keys

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "configuration.md"
BEGIN, END = "<!-- keys: written by scripts/write_config_docs.py -->\n", "<!-- end of keys -->"
MARK = "# All keys and their defaults; written by scripts/write_config_docs.py\n"
WIDTH = 120


def shown(value: Any) -> str:
    """As YAML reads it."""
    if value == MISSING:
        return "–"
    if isinstance(value, float):
        return f"{value:g}" if "e" not in f"{value:g}" else f"{value:.1e}"
    return value if isinstance(value, str) and value else json.dumps(value)


def help_of(key: Key) -> str:
    return f"{key.help} ({', '.join(key.choices)})" if key.choices else key.help


def table() -> str:
    rows = [f"| `{key.name}` | `{shown(key.default)}` | {help_of(key)} |" for key in all_keys().values()]
    return "\n".join(["| key | default | what it is |", "|---|---|---|", *rows]) + "\n"


def default_files() -> dict[str, Path]:
    """By group: the file that apa-train composes where nothing else is chosen."""
    groups = {name.partition(".")[0] for name in all_keys()}
    entries = yaml.safe_load((ROOT / "configs" / "train.yaml").read_text(encoding="utf-8"))["defaults"]
    chosen = {group: name for entry in entries if isinstance(entry, dict) for group, name in entry.items()}
    return {group: ROOT / "configs" / group / f"{chosen[group]}.yaml" for group in chosen if group in groups}


def keys_of(group: str) -> str:
    """Comments alone: the group's file sets what is above them, and everything else is the schema's."""
    lines, section = [], ""
    for key in all_keys().values():
        if not key.name.startswith(f"{group}."):
            continue
        _, *sections, name = key.name.split(".")
        if sections and ".".join(sections) != section:
            section = ".".join(sections)
            lines.append(f"# {'  ' * (len(sections) - 1)}{sections[-1]}:")
        indent = "# " + "  " * len(sections)
        setting = f"{indent}{name}: {shown(key.default)}"
        if len(setting) + len(help_of(key)) + 4 <= WIDTH:
            lines.append(f"{setting}  # {help_of(key)}")
        else:
            lines += [setting, *textwrap.wrap(help_of(key), WIDTH, initial_indent=f"{indent}  # ",
                                              subsequent_indent=f"{indent}  # ")]  # fmt: skip
    return "\n".join(lines) + "\n"


def pages() -> dict[Path, str]:
    """What each file should hold."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    found = {PAGE: before + BEGIN + table() + END + rest.split(END)[1]}
    for group, file in default_files().items():
        own = file.read_text(encoding="utf-8").partition(MARK)[0].rstrip()
        found[file] = f"{own}\n\n{MARK}{keys_of(group)}"
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = {file: text for file, text in pages().items() if file.read_text(encoding="utf-8") != text}
    for file, text in stale.items():
        if check:
            print(f"out of date: {file.relative_to(ROOT)}", file=sys.stderr)
        else:
            file.write_text(text, encoding="utf-8")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
