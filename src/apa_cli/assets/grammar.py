"""Short restaurant reviews: a sampler, a recogniser and an exact measure of how friendly a review is.

A prompt opens a review ("review of the noodle bar: i ordered the spicy ramen and"), a response goes on with one to
three sentences ("it was very tasty. the staff were slow."). `sentiment` is the task's separate judge: the reward model
is trained on noisy preferences drawn from it and policy training never sees it, so it shows whether a policy got
friendlier or merely found what the reward model mistakes for friendliness.
"""

import math
import random
import re
from collections.abc import Sequence
from functools import cache, lru_cache

from apa_cli.assets.lexicon import MODIFIERS, OPINIONS, RULES

SCALE = 0.4  # sentiment per unit of valence; gives reviews of mixed mood a standard deviation of about 1
BROKEN_COST = 1.0  # for a sentence the grammar does not know, an unfinished one, or none at all
REPEAT_COST = 0.25  # for an opinion already given in the same response
SURPLUS_COST = 0.5  # for each sentence after the third
MAX_SENTENCES = 3
MAX_WORDS = 27  # of a sampled response, punctuation counted: with the end token, well within 32 tokens

_REFERENCE = re.compile(r"<(\w+)>")
_LONGEST = max(len(phrase.split()) for phrase in (*OPINIONS, *MODIFIERS))


def tokenize(text: str) -> list[str]:
    """Lower-case words and single punctuation marks; never raises."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def detokenize(words: Sequence[str]) -> str:
    """Text with spaces between words and punctuation attached to the word before it."""
    return re.sub(r" ([.,:!])", r"\1", " ".join(words))


def vocabulary() -> list[str]:
    """Every word and punctuation mark the grammar can produce, sorted."""
    alternatives = (_REFERENCE.sub(" ", text) for rule in RULES.values() for text in rule)
    return sorted({word for text in alternatives for word in text.split()})


def sample_prompt(rng: random.Random) -> str:
    """The opening of a review; its last word is "and"."""
    return detokenize(_expand("prompt", rng).split())


def sample_response(prompt: str, rng: random.Random, mood: float | None = None) -> str:
    """One to three sentences that go on from `prompt`.

    mood: how strongly friendly clauses are preferred (below 0: unfriendly ones); 1 is a clearly friendly reviewer. None
    draws one from a normal distribution around 0, so that a corpus of such reviews is of mixed mood.
    """
    mood = rng.gauss(0.0, 0.25) if mood is None else mood
    while True:
        sentences = [_sample_first(prompt, rng, mood)]
        for _ in range(rng.choices([0, 1, 2], weights=[1, 4, 3])[0]):
            sentences.append(_sample_later(rng, mood))
        words = " ".join(sentences).split()
        opinions = [phrase for sentence in sentences for phrase, _ in _opinions(sentence)]
        if len(words) <= MAX_WORDS and len(set(opinions)) == len(opinions):
            return detokenize(words)


def parses(response: str) -> bool:
    """Whether `response` is one to three whole sentences of the grammar, the first fit to follow a prompt."""
    sentences = _split_sentences(response)
    return 0 < len(sentences) <= MAX_SENTENCES and all(_is_sentence(s, i == 0) for i, s in enumerate(sentences))


def well_formed(prompts: list[str], responses: list[str], **columns: object) -> list[float]:
    """1 for a response that `parses`, otherwise 0: a rule to reward beside a model."""
    return [float(parses(response)) for response in responses]


def sentiment(prompts: list[str], responses: list[str], **columns: object) -> list[float]:
    """Exact friendliness of each response; about 0 ± 1 for reviews of mixed mood, higher is friendlier.

    A sentence of the grammar adds, for each opinion in it, SCALE × valence × the product of the modifiers right before
    it ("not very good": 0.4 × 1 × -0.5 × 1.5). An opinion already given in the response costs REPEAT_COST instead. A
    sentence that is not of the grammar, a last one without its end mark and an empty response cost BROKEN_COST and add
    no opinions; each sentence after the third costs SURPLUS_COST and adds none. Any string gets a finite score. The
    prompts play no part.
    """
    return [_score(response) for response in responses]


def _score(response: str) -> float:
    sentences = _split_sentences(response)
    if not sentences:
        return -BROKEN_COST
    total, given = 0.0, set[str]()
    for index, sentence in enumerate(sentences):
        if index >= MAX_SENTENCES:
            total -= SURPLUS_COST
        elif not _is_sentence(sentence, index == 0):
            total -= BROKEN_COST
        else:
            for phrase, value in _opinions(sentence):
                total += -REPEAT_COST if phrase in given else SCALE * value
                given.add(phrase)
    return total


def _split_sentences(text: str) -> list[str]:
    """Sentences as words separated by single spaces, each with its end mark; the last may lack one."""
    return [part.strip() for part in re.findall(r"[^.!]*[.!]|[^.!]+$", " ".join(tokenize(text))) if part.strip()]


@lru_cache(maxsize=65536)
def _opinions(sentence: str) -> tuple[tuple[str, float], ...]:
    """(phrase, valence after modifiers) for each opinion, left to right; the longest phrase wins."""
    words = sentence.split()
    found: list[tuple[str, float]] = []
    factor, position = 1.0, 0
    while position < len(words):
        step, next_factor = 1, 1.0
        for length in range(min(_LONGEST, len(words) - position), 0, -1):
            phrase = " ".join(words[position : position + length])
            if phrase in OPINIONS:
                found.append((phrase, factor * OPINIONS[phrase]))
                step = length
                break
            if phrase in MODIFIERS:
                step, next_factor = length, factor * MODIFIERS[phrase]
                break
        factor, position = next_factor, position + step
    return tuple(found)


def _value(text: str) -> float:
    return sum(value for _, value in _opinions(text))


@cache
def _pattern(rule: str) -> str:
    """Regular expression of one rule; rules are not recursive, so this ends."""
    alternatives = (_REFERENCE.sub(lambda match: _pattern(match[1]), text.replace(".", r"\.")) for text in RULES[rule])
    return "(?:" + "|".join(alternatives) + ")"


@cache
def _compiled(rule: str) -> re.Pattern[str]:
    return re.compile(_pattern(rule))


@lru_cache(maxsize=65536)
def _is_sentence(sentence: str, first: bool) -> bool:
    return _compiled("first_sentence" if first else "later_sentence").fullmatch(sentence) is not None


def _expand(rule: str, rng: random.Random) -> str:
    """A random text of `rule`, words separated by spaces."""
    text = rng.choices(list(RULES[rule]), weights=list(RULES[rule].values()))[0]
    return _REFERENCE.sub(lambda match: _expand(match[1], rng), text)


def _expand_in_mood(rule: str, rng: random.Random, mood: float, candidates: int = 6) -> str:
    """One of a few random texts of `rule`, chosen with weights exp(mood × valence)."""
    texts = [_expand(rule, rng) for _ in range(candidates)]
    return rng.choices(texts, weights=[math.exp(mood * _value(text)) for text in texts])[0]


def _join(left: str, right: str) -> str:
    """Two clauses, joined by "but" if one praises and the other blames."""
    return f"{left} {'but' if _value(left) * _value(right) < 0 else 'and'} {right}"


def _sample_first(prompt: str, rng: random.Random, mood: float) -> str:
    rule = "clause"
    if rng.random() < 0.7:  # otherwise speak of something else than the dish just named
        rule = {"one": "it_clause", "many": "they_clause", "none": "clause"}[_dish_number(prompt)]
    clause = _expand_in_mood(rule, rng, mood)
    if rng.random() < 0.3:
        clause = _join(clause, _expand_in_mood("clause", rng, mood))
    return clause + " ."


def _sample_later(rng: random.Random, mood: float) -> str:
    if rng.random() < 0.25:
        return _join(_expand_in_mood("clause", rng, mood), _expand_in_mood("clause", rng, mood)) + " ."
    return _expand_in_mood("later_sentence", rng, mood)


def _dish_number(prompt: str) -> str:
    """Whether `prompt` ends by naming "one" dish, "many" ("dumplings") or "none"."""
    last_words = " ".join(tokenize(prompt)[-3:])
    for number in ("one", "many"):
        if re.search(rf"\b{_pattern(f'dish_{number}')} and$", last_words):
            return number
    return "none"
