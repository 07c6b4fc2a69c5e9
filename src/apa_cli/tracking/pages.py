"""Building blocks of reports: numbers, durations, Markdown tables and a self-contained HTML page."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template

from apa_cli.secrets import printable


def format_number(value: float | None, digits: int) -> str:
    if value is None or value != value:
        return "–"
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text  # −0.00 is 0.00


def format_seconds(seconds: float) -> str:
    """41.2 s, 12 min 5 s, 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def shortened(text: str, width: int) -> str:
    """Shorten a name in the middle."""
    end = (width - 1) // 2
    return text if len(text) <= width else f"{text[: width - 1 - end]}…{text[len(text) - end :]}"


def markdown_table(header: Sequence[str], rows: Iterable[Iterable[object]], *, numbers: bool = True) -> list[str]:
    """Lines of a table of Markdown cells; columns after the first are right-aligned."""
    rule = f"|---|{('---:|' if numbers else '---|') * (len(header) - 1)}"
    return [f"| {' | '.join(header)} |", rule, *(f"| {' | '.join(map(str, row))} |" for row in rows)]


def cell(text: object) -> str:
    """Any text as a cell of a Markdown table."""
    return " ".join(str(text).split()).replace("|", "\\|")


def relative(path: Path, folder: Path) -> str:
    """For a link from a page in `folder`."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def image(path: Path, folder: Path) -> str:
    """A picture in a Markdown page in `folder`."""
    return f"![{path.stem}]({relative(path, folder)})"


def html_text(value: object) -> str:
    return escape(printable(str(value)))


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table for the terminal: the first column on the left, numbers on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows)
    return ["  ".join(row) for row in cells]


def html_table(header: Iterable[str], rows: Iterable[Iterable[str]], *, name: str) -> str:
    head = "".join(f"<th>{html_text(title)}</th>" for title in header)
    body = "".join(f"<tr>{''.join(f'<td>{html_text(text)}</td>' for text in row)}</tr>" for row in rows)
    return f'<div class="wide"><table id="{name}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def html_pair(prompt: str, *responses: tuple[str, str]) -> str:
    """A prompt, and (words, text) of its responses side by side."""
    texts = (
        f'<div><span class="soft">{html_text(words)}</span><pre>{html_text(text.strip()) or "(empty)"}</pre></div>'
        for words, text in responses
    )
    return f'<p class="soft">Prompt</p><pre>{html_text(prompt)}</pre><div class="pair">{"".join(texts)}</div>'


def html_page(title: str, about: str, body: str, *, script: str = "") -> str:
    """One file that fetches nothing; `body` is HTML. The page's policy lets no script run but this one."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _PAGE.substitute(
        title=html_text(title),
        about=html_text(about),
        body=f"{body}\n<script>{script}</script>" if script else body,
        script_source=f"'sha256-{digest}'" if script else "'none'",
    )


_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src $script_source">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root { --text: #1c1c1e; --soft: #63636b; --line: #d8d8de; --back: #ffffff; --box: #f5f5f7; --bad: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --text: #ececf0; --soft: #a0a0a8; --line: #3c3c42; --back: #17171a; --box: #222226; --bad: #ff8a80; }
}
body { margin: 0 auto; max-width: 72rem; padding: 1rem 1rem 4rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: 1rem 0 0; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
.soft, figcaption { color: var(--soft); font-size: .875rem; } .bad { color: var(--bad); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; white-space: normal; overflow-wrap: normal; }
th:first-child, td:first-child { text-align: left; } td:first-child { white-space: normal; min-width: 12rem; }
th[tabindex] { cursor: pointer; } th[aria-sort]::after { content: " ↑"; }
th[aria-sort=descending]::after { content: " ↓"; }
input { font: inherit; width: min(100%, 24rem); box-sizing: border-box; } output { color: var(--soft); }
figure { margin: 1rem 0; } img { width: max(100%, 44rem); height: auto; border-radius: 6px; background: #fff; }
details { border-bottom: 1px solid var(--line); } summary { cursor: pointer; padding: .6rem 0; }
pre { margin: .3rem 0 .8rem; padding: .6rem .8rem; background: var(--box); border-radius: 6px; white-space: pre-wrap;
  font: .85rem/1.45 ui-monospace, monospace; }
.pair { display: grid; gap: 0 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
dl { display: grid; grid-template-columns: minmax(8rem, auto) 1fr; gap: .1rem 1rem; font-size: .875rem; }
dt { color: var(--soft); } dd { margin: 0; }
</style>
</head>
<body>
<h1>$title</h1>
<p class="soft">$about</p>
$body
</body>
</html>
""")
