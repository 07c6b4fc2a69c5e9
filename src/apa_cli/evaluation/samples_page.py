"""samples.html: responses before and after side by side, the best, the worst and the typical ones. One plain file."""

from __future__ import annotations

from html import escape
from string import Template

from apa_cli.evaluation.evaluate_checkpoints import EvaluatedPolicy, Evaluation
from apa_cli.evaluation.respond import JudgedResponse

EACH = 6  # samples of a kind

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Samples before and after</title>
<style>
body { margin: 0 auto; max-width: 70rem; padding: 1rem 1rem 4rem; font: 16px/1.5 system-ui, sans-serif; }
h2 { margin: 2.5rem 0 .2rem; } h3 { margin: 1.6rem 0 .4rem; }
.note { opacity: .7; font-size: .875rem; }
article { border-top: 1px solid #8886; padding: .8rem 0; }
.prompt { font-weight: 600; white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 0 .5rem; }
.pair { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
.pair > div { background: #8881; border-radius: 6px; padding: .5rem .8rem; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; margin: .2rem 0 0; }
</style>
</head>
<body>
<h1>Before and after</h1>
<p class="note">$about</p>
$body
</body>
</html>
""")


def samples_page(evaluation: Evaluation) -> str:
    about = (
        f"On {evaluation.prompts}; {evaluation.decoding} responses, seed {evaluation.seed}. "
        "Before: the initial policy. Ordered by the separate evaluator's score of the response after training "
        "where there is one, otherwise by the training reward's."
    )
    body = "\n".join(_section(policy, evaluation.opponents) for policy in evaluation.policies[1:])
    return _PAGE.substitute(about=escape(about), body=body)


def chosen(responses: list[JudgedResponse], each: int = EACH) -> dict[str, list[int]]:
    """Indices of the best, the typical (nearest to the median) and the worst responses; none stands twice."""
    ordered = sorted(range(len(responses)), key=lambda i: (-_score(responses[i]), i))
    each = min(each, len(ordered) // 3) or 1
    best, rest = ordered[:each], ordered[each:]
    worst, rest = rest[len(rest) - each :] if len(rest) > each else rest, rest[: max(0, len(rest) - each)]
    middle = max(0, (len(rest) - each) // 2)
    return {"Best": best, "Typical": rest[middle : middle + each], "Worst": list(reversed(worst))}


def _score(response: JudgedResponse) -> float:
    return response.score if response.evaluator is None else response.evaluator


def _section(policy: EvaluatedPolicy, opponents: list[JudgedResponse]) -> str:
    parts = [f"<h2>{escape(policy.name)}</h2>"]
    for kind, indices in chosen(policy.responses).items():
        if indices:
            parts.append(f"<h3>{kind}</h3>")
            parts += [_pair(opponents[i], policy.responses[i]) for i in indices]
    return "\n".join(parts)


def _pair(before: JudgedResponse, after: JudgedResponse) -> str:
    return (
        f'<article><p class="prompt">{escape(after.prompt)}</p><div class="pair">'
        f"{_response('before', before)}{_response('after', after)}</div></article>"
    )


def _response(when: str, response: JudgedResponse) -> str:
    figures = f"reward {response.score:.2f}"
    if response.evaluator is not None:
        figures += f", evaluator {response.evaluator:.2f}"
    return (
        f'<div><span class="note">{when}: {figures}</span>'
        f'<p class="text">{escape(response.response.strip()) or "(empty)"}</p></div>'
    )
