"""The review grammar and the models shipped with it."""

import json
import random
import statistics
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from apa_cli import assets
from apa_cli.assets import grammar
from apa_cli.assets.lexicon import OPINIONS, RULES

REVIEWS = Path(assets.__file__).parent / "reviews"


def judge(response: str) -> float:
    return grammar.sentiment(["review of the noodle bar: i ordered the spicy ramen and"], [response])[0]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(REVIEWS / "policy")


@pytest.fixture(scope="module")
def prompts() -> dict[str, list[str]]:
    lines = {name: (REVIEWS / f"{name}.jsonl").read_text().splitlines() for name in ("prompts", "eval_prompts")}
    return {name: [json.loads(line)["prompt"] for line in rows] for name, rows in lines.items()}


# 0.4 × valence × modifiers; -0.25 for an opinion given before, -1 for a broken sentence, -0.5 for each after the third
@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("it was good.", 0.4),
        ("it was very good. the staff were slow.", 0.4 * 1.5 - 0.4),
        ("it was not very tasty.", 0.4 * 1.5 * -0.5 * 1.5),
        ("it was slightly salty but the waiter smiled all evening.", -0.4 * 0.5 + 0.4),
        ("it was a bit salty.", -0.2),
        ("we paid in cash. i will never come back.", 0.4 * -1.5),
        ("it was raining outside.", 0.0),
        ("there was a view of the river. what a treat!", 0.4 * 1.5 + 0.4 * 1.5),
        ("it was delicious. the food was delicious.", 0.8 - 0.25),
        ("it was delicious", -1.0),
        ("it was good. delicious superb wonderful.", 0.4 - 1.0),
        ("i loved it. it was good.", 0.8 - 1.0),  # "it" needs the prompt's dish right before it
        ("it was good. i loved it. the bill was fair. the bar was calm.", 0.4 + 0.8 + 0.4 - 0.5),
        ("", -1.0),
    ],
)
def test_sentiment_of_hand_worked_reviews(response: str, expected: float) -> None:
    assert judge(response) == pytest.approx(expected)


def test_spacing_and_case_do_not_change_the_sentiment() -> None:
    assert judge("It was good . What a treat !") == judge("it was good. what a treat!") == pytest.approx(1.0)


@pytest.mark.parametrize("response", [" ", "...", "!?", "<pad><eos>", "ünïcode 日本 \x00", "a" * 5000, ". " * 500])
def test_any_text_gets_a_finite_score_and_none_of_these_pays(response: str) -> None:
    assert -300 < judge(response) <= -1.0


def test_words_without_an_opinion_are_never_counted_as_one() -> None:
    plain = [
        text for rule in ("plain_clause", "seat", "day", "meal", "place", "cooked", "lead") for text in RULES[rule]
    ]
    assert not {word for text in plain for word in text.split()} & set(OPINIONS)


def test_sampled_reviews_parse_and_are_of_mixed_mood() -> None:
    rng = random.Random(0)
    prompts = [grammar.sample_prompt(rng) for _ in range(1000)]
    responses = [grammar.sample_response(prompt, rng) for prompt in prompts]
    scores = grammar.sentiment(prompts, responses)
    assert all(map(grammar.parses, responses))
    assert abs(statistics.mean(scores)) < 0.15
    assert 0.7 < statistics.stdev(scores) < 1.3
    assert max(len(grammar.tokenize(response)) for response in responses) <= 27


def test_mood_decides_the_sentiment() -> None:
    rng = random.Random(0)
    prompts = [grammar.sample_prompt(rng) for _ in range(200)]
    means = [
        statistics.mean(grammar.sentiment(prompts, [grammar.sample_response(prompt, rng, mood) for prompt in prompts]))
        for mood in (-1.0, 0.0, 1.0)
    ]
    assert means[0] < -0.8 < 0.8 < means[2]
    assert abs(means[1]) < 0.3


def test_training_and_held_out_prompts_are_unique_and_disjoint(prompts: dict[str, list[str]]) -> None:
    train, held_out = set(prompts["prompts"]), set(prompts["eval_prompts"])
    assert (len(train), len(held_out)) == (2000, 256)
    assert (len(prompts["prompts"]), len(prompts["eval_prompts"])) == (2000, 256)
    assert not train & held_out


def test_every_word_of_the_grammar_is_one_token(tokenizer) -> None:
    ids = tokenizer(grammar.vocabulary())["input_ids"]
    assert all(len(token) == 1 for token in ids)
    assert [tokenizer.unk_token_id] not in ids
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}) == 3


def test_decoding_gives_the_text_back(tokenizer, prompts: dict[str, list[str]]) -> None:
    rng = random.Random(0)
    texts = [f"{prompt} {grammar.sample_response(prompt, rng)}" for prompt in prompts["eval_prompts"]]
    assert tokenizer.batch_decode(tokenizer(texts)["input_ids"]) == texts


def test_reward_model_prefers_friendly_and_whole_reviews(prompts: dict[str, list[str]]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(REVIEWS / "reward")
    reward = AutoModelForSequenceClassification.from_pretrained(REVIEWS / "reward")
    rng = random.Random(0)
    asked = prompts["eval_prompts"]
    friendly, unfriendly = ([grammar.sample_response(prompt, rng, mood) for prompt in asked] for mood in (0.7, -0.7))
    cut = [" ".join(response.split()[:-2]) for response in friendly]

    def scores(responses: list[str]) -> torch.Tensor:  # (B,)
        texts = [f"{p} {r}{tokenizer.eos_token}" for p, r in zip(asked, responses, strict=True)]
        batch = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            return reward(**batch).logits[:, 0]

    assert (scores(friendly) > scores(unfriendly)).float().mean() > 0.75
    assert (scores(friendly) > scores(cut)).float().mean() > 0.75
