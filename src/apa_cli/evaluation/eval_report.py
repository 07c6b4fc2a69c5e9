"""Write eval.json, eval.md, samples.jsonl, samples.html and a plot over iterations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from apa_cli.evaluation.bootstrap import Estimate
from apa_cli.evaluation.evaluate_checkpoints import EvaluatedPolicy, Evaluation
from apa_cli.evaluation.measures import LABELS, in_order, label_of
from apa_cli.evaluation.respond import OPPONENTS, RESPONSES, JudgedResponse
from apa_cli.files import json_value
from apa_cli.secrets import printable, redact, redact_text
from apa_cli.tracking.pages import cell, format_number, html_page, html_pair, html_text, markdown_table
from apa_cli.tracking.style import BLUE, GREEN, new_figure, over_iterations

PICTURE = "over_iterations.png"
EACH = 6  # best, typical and worst samples in samples.html
NOTES = (
    "In brackets: 95 % intervals over prompts (bootstrap; jackknife for distinct-n and different responses).",
    "Win rates compare with other responses of the initial policy to the same prompts, so that the initial policy "
    "against itself wins and loses alike.",
)


def write_evaluation(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write all files into `folder` and return them."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(json_value(row), ensure_ascii=False) + "\n" for row in sample_rows(evaluation))
    contents = {  # JSON escapes control characters
        "eval.json": json.dumps(redact(as_json(evaluation)), indent=2, ensure_ascii=False) + "\n",
        "eval.md": printable(markdown(evaluation)),
        "samples.jsonl": redact_text("".join(lines)),
        "samples.html": printable(samples_page(evaluation)),
    }
    for name, content in contents.items():
        (folder / name).write_text(content, encoding="utf-8", errors="backslashreplace")
    written = [folder / name for name in contents]
    (folder / PICTURE).unlink(missing_ok=True)  # of an earlier evaluation
    if len(curve(evaluation)) > 2:
        _draw(curve(evaluation), folder / PICTURE)
        written.append(folder / PICTURE)
    return written


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "prompts": evaluation.prompts,
        "rows": evaluation.rows,
        "streams": {"responses": RESPONSES, "opponents": OPPONENTS},
        **({"reference": evaluation.reference} if evaluation.reference else {}),
        "decoding": evaluation.decoding,
        "seed": evaluation.seed,
        "seconds": round(evaluation.seconds, 1),
        "policies": [
            {
                "name": policy.name,
                "iteration": policy.iteration,
                "path": policy.path,
                "figures": {name: json_value(asdict(figure)) for name, figure in policy.figures.items()},
                **({"judge": policy.judge} if policy.judge else {}),
            }
            for policy in evaluation.policies
        ],
    }


def rows(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table: a row for each metric, a column for each policy."""
    policies = evaluation.policies
    table = []
    for name in in_order({name: None for policy in policies for name in policy.figures}):
        label, unit, digits = label_of(name)
        cells = [with_interval(policy.figures.get(name), digits) for policy in policies]
        table.append([f"{label}, {unit}" if unit else label, *cells])
    return ["", *(policy.name for policy in policies)], table


def with_interval(figure: Estimate | None, digits: int) -> str:
    if figure is None:
        return "–"
    value, low, high = (format_number(number, digits) for number in (figure.value, figure.low, figure.high))
    return f"{value} [{low}, {high}]"


def markdown(evaluation: Evaluation) -> str:
    header, table = rows(evaluation)
    lines = [
        "# Evaluation", "",
        f"On {evaluation.prompts}; {evaluation.decoding} responses, seed {evaluation.seed}, stream {RESPONSES}; "
        f"win rates against the initial policy's on stream {OPPONENTS}. The rows are listed in eval.json.", "",
        *markdown_table(list(map(cell, header)), (map(cell, row) for row in table)), "", *NOTES,
        *([f"KL is measured from the reference, {evaluation.reference}."] if evaluation.reference else []), "",
        "Responses side by side: [samples.html](samples.html).", "",
    ]  # fmt: skip
    if len(curve(evaluation)) > 2:
        lines += [f"![Figures over iterations]({PICTURE})", ""]
    for policy in evaluation.policies:
        if policy.judge:
            lines += [f"Endpoint judge on {policy.name}: {judge_line(policy.judge)}", ""]
    return "\n".join(lines)


def judge_line(account: dict[str, Any]) -> str:
    line = (
        f"{account['model']}, {account['judged']} of {account['pairs']} pairs judged, {account['wins']} won, "
        f"{account['ties']} tied, {account['losses']} lost; {account['inconsistent']} changed with the order, "
        f"{account['unparsed']} answers not understood."
    )
    return f"{line} Stopped early: {account['stopped']}." if account["stopped"] else line


def sample_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """One object per checkpoint and prompt: before, after, and their metrics."""
    return [
        {
            "checkpoint": policy.name,
            "prompt": after.prompt,
            "before": before.response,
            "after": after.response,
            "score_before": before.score,
            "score_after": after.score,
            "evaluator_before": before.evaluator,
            "evaluator_after": after.evaluator,
            "kl": after.kl_exact,
        }
        for policy in evaluation.policies[1:]
        for before, after in zip(evaluation.opponents, policy.responses, strict=True)
    ]


def samples_page(evaluation: Evaluation) -> str:
    """Responses before and after side by side: the best, the typical and the worst ones."""
    about = (
        f"On {evaluation.prompts}; {evaluation.decoding} responses, seed {evaluation.seed}. "
        "Before: the initial policy. Ordered by the separate evaluator's score of the response after training "
        "where there is one, otherwise by the training reward's."
    )
    parts = []
    for policy in evaluation.policies[1:]:
        parts.append(f"<h2>{html_text(policy.name)}</h2>")
        for kind, indices in chosen(policy.responses).items():
            parts += [f"<h3>{kind}</h3>"] if indices else []
            for before, after in ((evaluation.opponents[i], policy.responses[i]) for i in indices):
                parts.append(html_pair(after.prompt, _shown("before", before), _shown("after", after)))
    return html_page("Samples before and after", about, "\n".join(parts))


def chosen(responses: list[JudgedResponse], each: int = EACH) -> dict[str, list[int]]:
    """Indices of the best, the typical (nearest to the median) and the worst responses, without repetition."""
    scores = [r.score if r.evaluator is None else r.evaluator for r in responses]
    ordered = sorted(range(len(responses)), key=lambda i: (-scores[i], i))
    each = min(each, len(ordered) // 3) or 1
    best, rest = ordered[:each], ordered[each:]
    worst, rest = rest[max(0, len(rest) - each) :], rest[: max(0, len(rest) - each)]
    middle = max(0, (len(rest) - each) // 2)
    return {"Best": best, "Typical": rest[middle : middle + each], "Worst": worst[::-1]}


def _shown(when: str, response: JudgedResponse) -> tuple[str, str]:
    evaluator = "" if response.evaluator is None else f", evaluator {response.evaluator:.2f}"
    return f"{when}: reward {response.score:.2f}{evaluator}", response.response


def curve(evaluation: Evaluation) -> list[EvaluatedPolicy]:
    """The policies in the order of their iterations, if these are known and of one run."""
    if len({policy.run_dir for policy in evaluation.policies[1:]}) > 1:
        return []
    known = [policy for policy in evaluation.policies if policy.iteration is not None]
    return sorted(known, key=lambda policy: policy.iteration or 0)


def _draw(policies: Sequence[EvaluatedPolicy], path: Path) -> None:
    figure = new_figure(13, 3.8)
    for axes, names in zip(figure.subplots(1, 3), (("reward", "evaluator"), ("kl_exact",), ("entropy",)), strict=True):
        drawn = [name for name in names if any(name in policy.figures for policy in policies)]
        for name, colour in zip(drawn, (BLUE, GREEN), strict=False):
            known = [(policy.iteration, policy.figures[name]) for policy in policies if name in policy.figures]
            x, ends = [iteration for iteration, _ in known], [(figure.low, figure.high) for _, figure in known]
            axes.plot(x, [f.value for _, f in known], "o-", color=colour, label=LABELS[name][0], markersize=4)
            axes.fill_between(x, *zip(*ends, strict=True), color=colour, alpha=0.18)
        title = " and ".join(LABELS[name][0] for name in drawn)
        over_iterations(axes, title, LABELS[names[0]][1] or "score per response", legend=len(drawn) > 1)
    figure.savefig(path)
