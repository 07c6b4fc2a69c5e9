"""Write every key of the configuration, from the schema's own help, into docs/configuration.md and into the default
file of each group in configs/.

python scripts/write_config_docs.py          rewrite the part of each file below its marker
python scripts/write_config_docs.py --check  exit 1 if one of them is out of date
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING

from apa_cli.config.keys import SWEEP, Key, all_keys

ROOT = Path(__file__).parent.parent
PAGE, TRAIN = ROOT / "docs" / "configuration.md", ROOT / "configs" / "train.yaml"
BEGIN, END = "<!-- keys: written by scripts/write_config_docs.py -->\n", "<!-- end of keys -->"
MARK = "# All keys and their defaults; written by scripts/write_config_docs.py\n"
WIDTH, LONGEST = 120, 40  # columns of a file, and of `key: value` beside its help


def shown(value: Any) -> str:
    """As YAML reads it; ??? is a value that must be given."""
    if isinstance(value, float):
        return f"{value:g}" if "e" not in f"{value:g}" else f"{value:.1e}"
    return value if isinstance(value, str) and value else json.dumps(value)


def help_of(key: Key) -> str:
    """The schema's help, with the choices that it does not name itself."""
    named = all(re.search(rf"\b{re.escape(choice)}\b", key.help) for choice in key.choices)
    return key.help if named else f"{key.help} ({', '.join(key.choices)})"


def tables() -> str:
    """A section for each group: the files to choose from, and the keys."""
    text = [*_table([key for key in all_keys().values() if "." not in key.name])]
    for group, default in {**default_files(), SWEEP: ROOT / "configs" / SWEEP / "local.yaml"}.items():
        text += ["", f"## {group}", ""]
        for file in sorted(default.parent.glob("*.yaml"), key=lambda file: (file != default, file.stem)):
            lines = file.read_text(encoding="utf-8").splitlines()
            title = next(line for line in lines if line.startswith("# ") and not line.startswith("# @"))
            text.append(f"- `{group}={file.stem}`{' (default)' * (file == default)}: {title.removeprefix('# ')}")
        if keys := [key for key in all_keys().values() if key.name.startswith(f"{group}.")]:
            text += ["", *_table(keys)]
    return "\n".join(text) + "\n"


def _table(keys: list[Key]) -> list[str]:
    rows = [f"| `{key.name}` | `{shown(key.default)}` | {help_of(key)} |".replace(f"`{MISSING}`", "–") for key in keys]
    return ["| key | default | meaning |", "|---|---|---|", *rows]


def default_files() -> dict[str, Path]:
    """By group: the file that apa-train composes where nothing else is chosen."""
    groups = {name.partition(".")[0] for name in all_keys()}
    entries = yaml.safe_load((TRAIN).read_text(encoding="utf-8"))["defaults"]
    chosen = {group: name for entry in entries if isinstance(entry, dict) for group, name in entry.items()}
    return {group: ROOT / "configs" / group / f"{chosen[group]}.yaml" for group in chosen if group in groups}


def keys_of(group: str) -> str:
    """Comments alone: the group's file sets what is above them, and everything else is the schema's."""
    rows, section = [], ""
    for key in all_keys().values():
        head, _, rest = key.name.partition(".")
        if (head if rest else "") != group or (not group and key.default == MISSING):  # output_dir: train.yaml sets it
            continue
        *sections, name = (rest or head).split(".")
        if sections and ".".join(sections) != section:
            section = ".".join(sections)
            rows.append((f"{'  ' * (len(sections) - 1)}{sections[-1]}:", ""))
        rows.append((f"{'  ' * len(sections)}{name}: {shown(key.default)}", help_of(key)))
    column = max(len(setting) for setting, help in rows if help and len(setting) <= LONGEST) + 4
    return "\n".join(line for row in rows for line in _commented(*row, column=column)) + "\n"


def _commented(setting: str, help: str, *, column: int) -> list[str]:
    """`# key: value    # help`, with the help in a column of its own."""
    if not help:
        return [f"# {setting}"]
    margin = "#".ljust(column) + "# "
    first, *more = textwrap.wrap(help, WIDTH, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False)
    setting = f"# {setting}"
    return [setting, first, *more] if len(setting) > column - 2 else [setting.ljust(column) + first[column:], *more]


def pages() -> dict[Path, str]:
    """What each file should hold."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    found = {PAGE: before + BEGIN + tables() + END + rest.split(END)[1]}
    for group, file in {"": TRAIN, **default_files()}.items():
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
