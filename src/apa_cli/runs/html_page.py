"""One HTML file that holds everything: tables, pictures and sample responses.

It fetches nothing. Its one script sorts the tables and filters the runs; the page's policy lets no other run.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from apa_cli.runs.folders import Run
from apa_cli.runs.tables import Overview, notes, runs_table, settings_table
from apa_cli.tracking.pages import html_page, html_pair, html_table, html_text
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
_FILTER = '<p><input type="search" placeholder="Filter runs" aria-label="Filter runs" hidden> <output></output></p>'


def write_page(overview: Overview, pictures: Sequence[Path], path: Path) -> None:
    parts = []
    if overview.failures:
        failed = (f"<li><b>{html_text(name)}</b>: {html_text(reason)}</li>" for name, reason in overview.failures)
        parts.append(f'<h2>Failed</h2><ul class="bad">{"".join(failed)}</ul>')
    if overview.settings:
        parts += ["<h2>Settings</h2>", html_table(*settings_table(overview.settings), name="settings")]
        parts.append(f'<p class="soft">{html_text(" ".join(notes(overview)))}</p>')
    for picture, (title, caption) in zip(pictures, _CAPTIONS, strict=False):
        parts.append(f"<h2>{title}</h2>{_figure(picture.read_bytes(), title, caption)}")
    parts += ["<h2>Runs</h2>", _FILTER, html_table(*runs_table(overview), name="runs"), "<h2>Each run</h2>"]
    pictured = len(overview.runs) <= PICTURED
    if not pictured:
        parts.append(f'<p class="soft">More than {PICTURED} runs: pictures of single runs are in their folders.</p>')
    parts += [_details(run, overview.label(run), pictured=pictured) for run in overview.runs]
    page = html_page(overview.title, f"{overview.counts()}.", "\n".join(parts), script=_SCRIPT)
    path.write_text(page, "utf-8", "backslashreplace")


def _details(run: Run, label: str, *, pictured: bool) -> str:
    parts = [f'<details><summary>{html_text(label)} <span class="soft">{html_text(run.status)}</span></summary>']
    if run.reason:
        parts.append(f'<p class="bad">{html_text(run.reason)}</p>')
    if pictured and run.rows:
        png = io.BytesIO()
        overview_figure(run.rows).savefig(png, dpi=80)
        parts.append(_figure(png.getvalue(), f"Reward, KL and entropy of {label}"))
    for pair in run.pairs():
        before, after = f"before, score {pair.score_before:.3f}", f"after, score {pair.score_after:.3f}"
        parts.append(html_pair(pair.prompt, (before, pair.before), (after, pair.after)))
    facts = [
        ("policy", run.config.get("policy.path")),
        ("reward", run.config.get("reward.path") or run.config.get("reward.function")),
        ("prompts", run.config.get("data.path")),
        ("learning rate", run.config.get("optimizer.learning_rate")),
        ("overrides", " ".join(run.overrides)),
        ("folder", run.folder),
    ]
    rows = "".join(f"<dt>{name}</dt><dd>{html_text(value)}</dd>" for name, value in facts if value)
    return "\n".join([*parts, f"<dl>{rows}</dl></details>"])


def _figure(png: bytes, alt: str, caption: str = "") -> str:
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    below = f"<figcaption>{html_text(caption)}</figcaption>" if caption else ""
    return f'<figure><div class="wide"><img alt="{html_text(alt)}" src="{source}"></div>{below}</figure>'
