"""Reward models read what they should, one text like many."""

import json
import math

import pytest
import torch
from tiny_models import (
    CPU,
    make_chat_tokenizer,
    make_config,
    make_tokenizer,
    save_encoder_reward,
    save_policy,
    save_reward,
)
from transformers import AutoModelForSequenceClassification

from apa_cli.config.schema import DataConfig, RewardConfig
from apa_cli.data import load_prompts
from apa_cli.data.prompts import collate
from apa_cli.errors import UserError
from apa_cli.models.policy_loading import load_policy
from apa_cli.models.token_ids import same_tokenizer
from apa_cli.rewards.record import FinishedResponses, Scored
from apa_cli.rewards.scorers import load_reward, require_scores
from apa_cli.rollouts.generation import sample
from apa_cli.rollouts.sources import finished_responses

PROMPTS = ["the quick", "Human: hello", "fox"]
RESPONSES = [" brown fox", " there. Assistant: good day", ""]


@pytest.fixture(scope="session")
def policy(policy_dir):
    return load_policy(make_config(policy_dir()).policy, CPU)


def finished(policy, prompts=PROMPTS, responses=RESPONSES, messages=None, ids=None, **columns):
    texts = [p + r for p, r in zip(prompts, responses, strict=True)]
    token_ids = policy.tokenizer(texts)["input_ids"] if ids is None else ids
    return FinishedResponses(
        prompts=prompts, responses=responses, messages=messages, columns=columns, token_ids=token_ids
    )


def load(folder, policy, tokens=10**6, **settings):
    return load_reward(RewardConfig(path=str(folder), **settings), policy, CPU, microbatch_tokens=tokens)


@torch.no_grad()
def score_alone(folder, ids, label=0):
    """The classifier as transformers runs it on one sequence without padding; its pad token set aside.

    With pad_token_id None it reads the last position, which is the last token of a sequence that has no padding.
    """
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    model.config.pad_token_id = None
    return model(input_ids=torch.tensor([ids])).logits[0, label].item()


def test_which_tokenizers_are_the_same():
    base = make_tokenizer()
    assert same_tokenizer(base, make_tokenizer())
    padded = make_tokenizer()
    padded(["a", "bcd"], padding=True, truncation=True, max_length=3)  # leaves traces in the backend
    assert same_tokenizer(base, padded)
    assert not same_tokenizer(base, make_tokenizer(["zzz yyy zzz yyy xxx"]))
    assert not same_tokenizer(base, make_tokenizer(pad=False))
    added = make_tokenizer()
    added.add_tokens(["quick brown"])
    assert not same_tokenizer(base, added)


def test_a_reward_with_fewer_embeddings_than_the_policy_reads_text(policy, tmp_path, plain_tokenizer):
    """Models are often padded beyond their tokenizer; the policy may sample an id that the reward does not have."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    save_reward(tmp_path / "reward", plain_tokenizer)
    config = GPTNeoXConfig(
        vocab_size=320, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, eos_token_id=0
    )
    GPTNeoXForCausalLM(config).save_pretrained(tmp_path / "policy")
    plain_tokenizer.save_pretrained(tmp_path / "policy")
    larger = load_policy(make_config(tmp_path / "policy").policy, CPU)
    scorer = load(tmp_path / "reward", larger)
    assert len(scorer(finished(larger, ids=[[310], [311, 5], [312]]))) == 3


@pytest.mark.parametrize("kind", ["own pad", "pad is eos"])
def test_the_score_is_read_at_the_last_counted_token(policy_dir, tmp_path, kind):
    """Also where that token is the EOS, and where the EOS is what the batch is padded with."""
    tokenizer = make_tokenizer(pad=kind == "own pad")
    eos = tokenizer.eos_token_id
    save_reward(tmp_path, tokenizer)
    policy = load_policy(make_config(policy_dir(pad=kind == "own pad")).policy, CPU)
    scorer = load(tmp_path, policy)
    assert scorer.passes_ids_through(chat=False)
    assert (scorer._pad == eos) == (kind == "pad is eos")
    rows = [[40, 41, 42, 43, 44, 45, 46], [40, 41, eos], [40, 41], [40, 41, eos, eos], [eos], [eos, 40]]
    got = scorer(finished(policy, [""] * 6, [""] * 6, ids=rows))
    assert got == pytest.approx([score_alone(tmp_path, row) for row in rows], abs=1e-5)
    assert abs(got[1] - got[2]) > 1e-3  # the EOS is read, not stripped
    assert abs(got[1] - got[3]) > 1e-4


def test_an_encoder_pools_as_it_does_alone(policy, tmp_path, plain_tokenizer):
    save_encoder_reward(tmp_path, plain_tokenizer)
    rows = finished(policy)
    expected = [score_alone(tmp_path, ids) for ids in rows.token_ids]
    assert len(set(expected)) == 3
    assert load(tmp_path, policy)(rows) == pytest.approx(expected, abs=1e-5)
    assert load(tmp_path, policy, 4)(rows) == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def test_pairs_carry_their_segments(policy, tmp_path):
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=make_tokenizer().backend_tokenizer,
        eos_token="<eos>",
        pad_token="<pad>",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<eos> $A", pair="<eos> $A <eos> $B:1 <eos>:1", special_tokens=[("<eos>", 0)]
    )
    save_encoder_reward(tmp_path, tokenizer)
    scorer = load(tmp_path, policy, format="pair")
    assert not scorer.passes_ids_through(chat=False)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    expected = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        first, second = tokenizer(prompt, add_special_tokens=False), tokenizer(response, add_special_tokens=False)
        ids = [0, *first["input_ids"], 0, *second["input_ids"], 0]
        types = [0] * (len(first["input_ids"]) + 2) + [1] * (len(second["input_ids"]) + 1)
        expected.append(model(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([types])).logits.item())
    assert scorer(finished(policy)) == pytest.approx(expected, abs=1e-5)


@pytest.fixture(scope="session")
def chat_reward(tmp_path_factory):
    tokenizer = make_tokenizer(chat=True)
    return save_reward(tmp_path_factory.mktemp("chat"), tokenizer), tokenizer


DIALOGUE = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "and now?"},
]
POLICYS = "<|im_start|>user\nand now?<|im_end|>\n<|im_start|>assistant\nbye<|im_end|>"


def chat_policy(tmp_path):
    tokenizer = make_chat_tokenizer("chatml")
    return load_policy(make_config(save_policy(tmp_path / "policy", tokenizer)).policy, CPU)


def one_chat(policy, text=POLICYS, messages=DIALOGUE):
    ids = policy.tokenizer(text)["input_ids"]
    return finished(policy, ["user: hi"], ["bye"], messages=[messages], ids=[ids])


@pytest.mark.parametrize(
    ("family", "settings", "text"),
    [
        ("headers", {}, "own"),
        ("headers", {"format": "chat"}, "own"),
        ("headers", {"format": "policy"}, POLICYS),
        ("headers", {"format": "text"}, "<|begin|>user: hi\n\nbye"),
        ("none", {}, "user: hi\n\nbye"),
        ("none", {"format": "policy"}, POLICYS),
        ("chatml", {"format": "policy"}, POLICYS),
        ("chatml", {"format": "text"}, "user: hi\n\nbye"),
        ("chatml without its template", {}, POLICYS),
        ("chatml without its template", {"format": "text"}, "user: hi\n\nbye"),
    ],
)
def test_what_is_read_of_a_chat(tmp_path, family, settings, text):
    policy = chat_policy(tmp_path)
    tokenizer = (
        make_tokenizer() if family == "none" else make_chat_tokenizer(family.split()[0], bos=family == "headers")
    )
    if "without" in family:
        tokenizer.chat_template = None
    folder = save_reward(tmp_path / "reward", tokenizer)
    if text == "own":
        turns = [("system", "S"), ("user", "hi"), ("assistant", "yes"), ("user", "and now?"), ("assistant", "bye")]
        text = "<|begin|>" + "".join(f"<|header|>{who}<|end_header|>\n\n{what}<|eot|>" for who, what in turns)
    expected = score_alone(folder, tokenizer(text, add_special_tokens=False)["input_ids"])
    scorer = load(folder, policy, **settings)
    assert scorer(one_chat(policy)) == pytest.approx([expected], abs=1e-5)
    shares = family.startswith("chatml") and text == POLICYS
    assert scorer.passes_ids_through(chat=True) == shares


def test_the_same_tokenizer_with_another_template_shares_nothing(tmp_path):
    policy = chat_policy(tmp_path)
    tokenizer = make_chat_tokenizer("chatml")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    folder = save_reward(tmp_path / "reward", tokenizer)
    assert same_tokenizer(tokenizer, policy.tokenizer)
    expected = score_alone(
        folder, tokenizer("S<|im_end|>hi<|im_end|>yes<|im_end|>and now?<|im_end|>bye<|im_end|>")["input_ids"]
    )
    assert load(folder, policy)(one_chat(policy)) == pytest.approx([expected], abs=1e-5)


def test_a_long_dialogue_loses_its_oldest_turns_whole(tmp_path):
    policy = chat_policy(tmp_path)
    tokenizer = make_chat_tokenizer("headers")
    folder = save_reward(tmp_path / "reward", tokenizer)
    turns = [("system", "S"), ("user", "and now?"), ("assistant", "bye")]
    text = "<|begin|>" + "".join(f"<|header|>{who}<|end_header|>\n\n{what}<|eot|>" for who, what in turns)
    ids = tokenizer(text)["input_ids"]
    scorer = load(folder, policy, max_tokens=len(ids) + 3)
    assert scorer(one_chat(policy)) == pytest.approx([score_alone(folder, ids)], abs=1e-5)


def test_a_torn_hh_prompt_brings_no_system_message(policy, chat_reward, tmp_path):
    """Cut in the assistant's turn, by the settings of the data."""
    folder, tokenizer = chat_reward
    dialogue = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: and now?\n\nAssistant: a"
    (tmp_path / "a.jsonl").write_text(json.dumps({"chosen": dialogue, "rejected": dialogue}), "utf-8")
    kept = len(policy.tokenizer("llo\n\nHuman: and now?\n\nAssistant:")["input_ids"])
    data = DataConfig(path=str(tmp_path / "a.jsonl"), max_prompt_tokens=kept)
    prompts, _ = load_prompts(data, policy.tokenizer, evaluation_prompts=0, seed=0)
    assert not prompts.prompts[0].text.startswith("\n\nHuman:")
    batch = collate(prompts.prompts, policy.pad_token_id, copies=2)
    texts = finished_responses(policy, batch, sample(policy, batch, make_config("unused").generation), [])
    text = "<|user|>and now?<|end|><|assistant|>{}<|end|>"
    expected = [score_alone(folder, tokenizer(text.format(r.strip()))["input_ids"]) for r in texts.responses]
    assert load(folder, policy)(texts) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("labels", "problem", "log_odds"),
    [
        (2, None, True),
        (3, None, True),
        (3, "single_label_classification", True),
        (3, "multi_label_classification", False),
        (2, "regression", False),
    ],
)
def test_of_classes_the_score_is_the_labels_log_odds(policy, tmp_path, plain_tokenizer, labels, problem, log_odds):
    save_reward(tmp_path, plain_tokenizer, labels=labels)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "problem_type": problem}))
    rows = finished(policy)
    expected = []
    for ids in rows.token_ids:
        outputs = [score_alone(tmp_path, ids, label=label) for label in range(labels)]
        p = math.exp(outputs[1]) / sum(map(math.exp, outputs))
        expected.append(math.log(p / (1 - p)) if log_odds else outputs[1])
    scorer = load(tmp_path, policy, label=1)
    assert scorer(rows) == pytest.approx(expected, abs=1e-5)
    name = "output 1 (LABEL_1)"
    assert scorer.describe_score() == (f"the log-odds of {name} among {labels}" if log_odds else f"the value of {name}")


def test_long_texts_are_cut_on_the_left(policy, reward_dir, tmp_path, plain_tokenizer):
    rows = finished(policy, ["the quick brown fox"], [" jumps"])
    ids = rows.token_ids[0]
    assert len(ids) > 4
    got = load(reward_dir, policy, max_tokens=3)(rows)
    assert got == pytest.approx([score_alone(reward_dir, ids[-3:])], abs=1e-5)
    save_encoder_reward(tmp_path, plain_tokenizer)  # 64 positions, and it pools the first
    long = list(range(5, 105))
    got = load(tmp_path, policy)(finished(policy, [""], [""], ids=[long]))
    assert got == pytest.approx([score_alone(tmp_path, [long[0], *long[-63:]])], abs=1e-5)


def test_a_score_that_is_not_finite_is_passed_on_and_can_be_refused(policy, reward_dir):
    scorer = load(reward_dir, policy)
    with torch.no_grad():
        scorer.model.score.weight.fill_(math.nan)
    scores = scorer(finished(policy))
    assert all(map(math.isnan, scores))
    with pytest.raises(UserError, match=r"reward\.path: .* scored response 0 as nan; try precision=fp32"):
        require_scores(scorer, Scored(scores=scores))
    require_scores(scorer, Scored(scores=[math.nan, 1.0]))
