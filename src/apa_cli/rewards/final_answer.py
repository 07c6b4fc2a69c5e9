r"""Which part of a text is its final answer: one rule for responses, one for the column with the right answers.

Of a response, behind its last `</think>`: the last closed \boxed{…} or `#### …`, whichever comes later; without either
the last number. Of a column: the same marks, and without one the whole value, which is then one expression, or one
number among words.

A number may have a sign, a currency or percent sign (both are left out), commas or thin spaces between thousands, a
decimal point, a power of ten, and be a fraction (3/4, 1 1/2, \frac{3}{4}). `1,5` and `1 000` could be one number or two
and are not read. Behind `####` nothing but the answer counts: `#### Step 2: add` is a heading.
"""

from __future__ import annotations

import re
from collections import deque
from decimal import Decimal

RULE = r"the last \boxed{…} or ####, without either the last number"  # for people
LONGEST = 256  # characters of an answer

_PLAIN = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|(?<![\w.])\.[0-9]+)"
_GROUPED = r"[0-9]{1,3}(?:,[0-9]{3})+(?![0-9]|,[0-9])"
_SIGN, _CURRENCY = r"(?:(?<![)\]}])[-+])?", r"(?:\\?[$€£¥₹]\s?)?"
_NUMBER = re.compile(
    rf"""
    (?<![\w^]) (?<![\^_]\{{)                    # x2, cm^2, x_{{1}}: no number of its own
    (?P<sign>{_SIGN}{_CURRENCY}{_SIGN})
    (?:
        (?P<unclear>[0-9]{{1,3}}(?:[ ][0-9]{{3}})+(?![0-9/]) | (?!{_GROUPED})[0-9]+(?:,[0-9]+)+)
      | (?:(?P<whole>[0-9]+)\s*(?:\\[ ])?)? \\[dt]?frac
        (?: \{{\s*(?P<a>-?{_PLAIN})\s*\}}\s*\{{\s*(?P<b>{_PLAIN})\s*\}} | (?P<c>[0-9])\s*(?P<d>[0-9])(?![0-9]) )
      | (?:(?P<ones>[0-9]+)[ ])? (?P<e>{_PLAIN})\s*/\s*(?P<f>{_PLAIN})
      | (?P<plain>{_PLAIN})
        (?: \s*(?:\\times|\\cdot|[×x*])\s*10\s*(?:\^|\*\*)\s*\{{?(?P<ten>[-+]?[0-9]{{1,3}})\}}?
          | [eE](?P<exp>[-+]?[0-9]{{1,3}})(?!\w)
          | \s*(?:\^|\*\*)\s*\{{?(?P<power>-?[0-9]{{1,3}})\}}? )?
    )""",
    re.VERBOSE,
)
_MARK = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\.|(?P<brace>[{}])|####(?!#)(?=(?P<line>[^\n#]*))", re.DOTALL)
_TEXT = re.compile(r"\\(?:text|textbf|mathbf|mathrm|mbox)\s*\{([^{}]*)\}")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORD = re.compile(r"[A-Za-z]{3,}|(?<=\s)[A-Za-z]{2}")
_AROUND_A_NUMBER = re.compile(r"[\w\s.,;:!?'\"*$€£¥₹%-]*")
_BETWEEN_THOUSANDS = re.compile(r"(?<=[0-9])(?:[\u00a0\u2009\u202f]|\\[,!;]|\{,\}|,\\!)(?=[0-9]{3}(?![0-9]))")
_FENCE = r"(?:\$|\\[()\[\]]|\*\*|[\s\u20ac\u00a3\u00a5\u20b9])*"
_INSIDE = re.compile(rf"{_FENCE}(?:=\s*)?(?:\\\$)?(.*?)\s*(?:\\?%|[.,;])*{_FENCE}[.,;]?", re.DOTALL)


def final_answer(response: str) -> str | None:
    """A response's answer as LaTeX; None where it has none, or one longer than LONGEST."""
    response = _plain_signs(response.rpartition("</think>")[2])
    if (mark := _last_mark(response)) is not None:
        return _marked(mark)
    last = deque(_NUMBER.finditer(response), maxlen=1)
    return _short(_written(last[0])) if last else None


def right_answer(value: object) -> str | None:
    """A column's answer as LaTeX; None for what cannot be read, or in more than one way."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float, Decimal)):
        return None
    text = _plain_signs(str(value))
    mark = _last_mark(text)
    return _short(_expression(text)) if mark is None else _marked(mark)


def _marked(text: str) -> str | None:
    return _short(_expression(text) or _latex(text))


def _last_mark(text: str) -> str | None:
    """What stands in the last closed box, or behind the last `####`; a box is where it begins."""
    opened: list[int | None] = []  # of each brace that is open where a box's text begins, None of another
    found, answer = -1, None
    for match in _MARK.finditer(text):
        if match["box"]:
            opened.append(match.end())
        elif match["brace"] == "{":
            opened.append(None)
        elif match["brace"]:
            start = opened.pop() if opened else None
            if start is not None and start > found:
                found, answer = start, text[start : match.start()]
        elif match["line"] and match["line"].strip() and not _has_words(match["line"]):
            found, answer = match.start(), match["line"]
    return answer


def _expression(text: str) -> str | None:
    """All of a short text without words, or the one number among its words."""
    if not text.strip() or len(text) > 4 * LONGEST:
        return None
    if (words := _TEXT.fullmatch(text.strip())) is not None:
        return _expression(words[1])
    if not _has_words(text):
        return _latex(text)
    numbers = list(_NUMBER.finditer(text))
    if len(numbers) == 1 and _AROUND_A_NUMBER.fullmatch(_NUMBER.sub(" ", text)):
        return _written(numbers[0])
    return None


def _has_words(text: str) -> bool:
    return _WORD.search(_COMMAND.sub(" ", _TEXT.sub(" ", text))) is not None


def _latex(text: str) -> str:
    """Without what encloses it: $…$, \\(…\\), **…**, a currency or percent sign, a full stop."""
    match = _INSIDE.fullmatch(text)
    inside = match[1].strip() if match else text.strip()
    number = _NUMBER.fullmatch(inside)
    return _written(number) if number and not number["unclear"] else " ".join(inside.replace("$", " ").split())


def _written(number: re.Match[str]) -> str:
    if number["unclear"]:
        return ""
    found = {name: text.replace(",", "") for name, text in number.groupdict().items() if text is not None}
    sign = "-" if found["sign"].count("-") % 2 else ""
    if "plain" in found:
        if (ten := found.get("ten", found.get("exp"))) is not None:
            return sign + format(Decimal(f"{found['plain']}e{ten}"), "f")
        return f"{sign}{found['plain']}" + (f"^{{{found['power']}}}" if "power" in found else "")
    above, below = next((found[a], found[b]) for a, b in (("a", "b"), ("c", "d"), ("e", "f")) if a in found)
    whole = found.get("whole", found.get("ones"))
    if whole is not None and above.isdigit() and below.isdigit():
        above = str(int(whole[-LONGEST:]) * int(below[-LONGEST:]) + int(above[-LONGEST:]))
    return rf"{sign}\frac{{{above}}}{{{below}}}"


def _plain_signs(text: str) -> str:
    return _BETWEEN_THOUSANDS.sub(",", text.replace("\u2212", "-"))


def _short(answer: str | None) -> str | None:
    return answer if answer and len(answer) <= LONGEST else None
