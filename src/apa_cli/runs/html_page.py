"""One HTML file that holds everything: tables, pictures and sample responses.

It fetches nothing. Its one script sorts the tables and filters the runs; the page's policy lets no other run.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template

from apa_cli.runs.folders import Pair, Run
from apa_cli.runs.settings import shown
from apa_cli.runs.tables import Overview, notes, runs_table, settings_table
from apa_cli.secrets import printable
from apa_cli.tracking.plots import overview_figure

PICTURED = 24  # runs that get a picture of their own: each is about 60 kB of the page
_CAPTIONS = (
    ("Reward against KL", "Through the means over seeds. Small points: the single runs. Band: lowest to highest seed."),
    ("Over iterations", "On the rollouts of training. Mean over seeds; band: lowest to highest seed."),
)

# A click on a header sorts by that column, another one turns the order round. Numbers within a text, as in
# objective.kl_lambda=0.05, compare as numbers; empty cells stay last. The text box keeps the rows that hold every word.
_SCRIPT = r"""
const split = (text) => text.split(/((?:(?<!\w)-)?\d+(?:\.\d+)?(?:e[-+]?\d+)?)/i);
function compare(left, right) {
  const [a, b] = [split(left), split(right)];
  for (let i = 0; i < Math.min(a.length, b.length); i++) {
    const order = i % 2 ? a[i] - b[i] : (a[i] > b[i]) - (a[i] < b[i]);
    if (order) return order;
  }
  return a.length - b.length;
}
for (const table of document.querySelectorAll("table")) {
  const rows = table.tBodies[0].rows, text = (row, column) => row.cells[column].textContent;
  for (const header of table.tHead.rows[0].cells) {
    const column = header.cellIndex;
    header.tabIndex = 0;
    header.onkeydown = (event) => event.key === "Enter" && header.onclick();
    header.onclick = () => {
      const sign = header.ariaSort === "ascending" ? -1 : 1;
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const empty = (row) => text(row, column) === "–";
      table.tBodies[0].append(...[...rows].sort((a, b) =>
        empty(a) - empty(b) || sign * compare(text(a, column), text(b, column))));
    };
  }
}
const box = document.querySelector("input"), shown = document.querySelector("output");
box.hidden = false;
box.oninput = () => {
  const rows = [...document.querySelectorAll("#runs tbody tr")], words = box.value.toLowerCase().split(/\s+/);
  for (const row of rows) {
    const text = [...row.cells].map((cell) => cell.textContent.toLowerCase()).join("\n");
    row.hidden = !words.every((word) => text.includes(word));
  }
  shown.value = box.value ? `${rows.filter((row) => !row.hidden).length} of ${rows.length}` : "";
};
"""
_HASH = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
_FILTER = '<p><input type="search" placeholder="Filter runs" aria-label="Filter runs" hidden> <output></output></p>'

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-$hash'">
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
<p class="soft">$counts</p>
$body
<script>$script</script>
</body>
</html>
""")


def write_page(overview: Overview, pictures: Sequence[Path], path: Path) -> None:
    path.write_text(page(overview, pictures), "utf-8", "backslashreplace")


def page(overview: Overview, pictures: Sequence[Path]) -> str:
    parts = []
    if overview.failures:
        reasons = "".join(f"<li><b>{_text(name)}</b>: {_text(reason)}</li>" for name, reason in overview.failures)
        parts.append(f'<h2>Failed</h2><ul class="bad">{reasons}</ul>')
    if overview.settings:
        parts += ["<h2>Settings</h2>", _table(*settings_table(overview.settings))]
        parts.append(f'<p class="soft">{_text(" ".join(notes(overview)))}</p>')
    for picture, (title, caption) in zip(pictures, _CAPTIONS, strict=False):
        figure = _figure(picture.read_bytes(), title, caption)
        parts.append(f"<h2>{title}</h2>{figure}")
    parts += ["<h2>Runs</h2>", _FILTER, _table(*runs_table(overview), name="runs"), "<h2>Each run</h2>"]
    pictured = len(overview.runs) <= PICTURED
    if not pictured:
        parts.append(f'<p class="soft">More than {PICTURED} runs: pictures of single runs are in their folders.</p>')
    parts += [_details(run, overview.label(run), pictured=pictured) for run in overview.runs]
    title, counts = _text(overview.title), _text(f"{overview.counts()}.")
    return _PAGE.substitute(title=title, counts=counts, body="\n".join(parts), script=_SCRIPT, hash=_HASH)


def _details(run: Run, label: str, *, pictured: bool) -> str:
    parts = [f'<details><summary>{_text(label)} <span class="soft">{_text(run.status)}</span></summary>']
    if run.reason:
        parts.append(f'<p class="bad">{_text(run.reason)}</p>')
    if pictured and run.rows:
        image = io.BytesIO()
        overview_figure([dict(row) for row in run.rows]).savefig(image, dpi=80)
        parts.append(_figure(image.getvalue(), f"Reward, KL and entropy of {label}"))
    parts += [_pair(pair) for pair in run.pairs()]
    facts = [
        ("policy", run.config.get("policy.path")),
        ("reward", run.config.get("reward.path") or run.config.get("reward.function")),
        ("prompts", run.config.get("data.path")),
        ("learning rate", run.config.get("optimizer.learning_rate")),
        ("overrides", " ".join(run.overrides)),
        ("folder", run.folder),
    ]
    rows = "".join(f"<dt>{name}</dt><dd>{_text(shown(value))}</dd>" for name, value in facts if value)
    return "\n".join([*parts, f"<dl>{rows}</dl></details>"])


def _pair(pair: Pair) -> str:
    return (
        f'<p class="soft">Prompt</p><pre>{_text(pair.prompt)}</pre><div class="pair">'
        f'<div><span class="soft">before, score {pair.score_before:.3f}</span><pre>{_text(pair.before)}</pre></div>'
        f'<div><span class="soft">after, score {pair.score_after:.3f}</span><pre>{_text(pair.after)}</pre></div></div>'
    )


def _table(header: Iterable[str], rows: Iterable[Iterable[str]], *, name: str = "settings") -> str:
    head = "".join(f"<th>{_text(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table id="{name}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _figure(png: bytes, alt: str, caption: str = "") -> str:
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    below = f"<figcaption>{_text(caption)}</figcaption>" if caption else ""
    return f'<figure><div class="wide"><img alt="{_text(alt)}" src="{source}"></div>{below}</figure>'


def _text(value: object) -> str:
    return escape(printable(str(value)))
