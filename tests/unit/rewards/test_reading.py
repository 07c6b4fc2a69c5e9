"""One text for every reward model, whether the policy's ids pass through or the text is tokenized anew."""

import pytest
import torch
from tiny_models import CPU, make_chat_tokenizer, make_config, make_tokenizer, save_policy, save_reward
from tokenizers import normalizers, processors
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from apa_cli.config.schema import RewardConfig
from apa_cli.data.prompts import Prompt, collate
from apa_cli.data.tokenization import cut_left
from apa_cli.errors import UserError
from apa_cli.models.policy_loading import load_policy
from apa_cli.rewards.scorers import load_reward
from apa_cli.rollouts.sources import finished_responses
from apa_cli.rollouts.trajectory import Trajectory

CHATS = [{"role": "user", "content": "hello there"}]
ASKED = "<|im_start|>user\nhello there<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture
def made(tmp_path):
    """made(tokenizer): its policy, a reward model that shares the tokenizer, and the same weights that do not."""

    def make(tokenizer):
        save_policy(tmp_path / "policy", tokenizer)
        for name in ("shared", "anew"):
            save_reward(tmp_path / name, tokenizer)
        other = AutoTokenizer.from_pretrained(tmp_path / "anew")
        other.backend_tokenizer.normalizer = normalizers.Sequence([])  # does nothing, and is another rule
        other.save_pretrained(tmp_path / "anew")
        policy = load_policy(make_config(tmp_path / "policy").policy, CPU)

        def load(name, **settings):
            config = RewardConfig(path=str(tmp_path / name), **settings)
            return load_reward(config, policy, CPU, microbatch_tokens=10**6)

        return policy, load

    return make


def with_bos(tokenizer, end=""):
    """<pad> in front of every text, and `end` behind it."""
    tokens = ["<pad>", *([end] if end else [])]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"<pad> $A {end}".strip(), special_tokens=[(t, tokenizer.convert_tokens_to_ids(t)) for t in tokens]
    )
    tokenizer.bos_token = "<pad>"
    return tokenizer


def finished(policy, prompt, response, *, ended, stop=(), limit=99, messages=None):
    """One response of these ids, or of this text's, as a rollout would have it."""
    tokenizer = policy.tokenizer
    if isinstance(response, str):
        response = tokenizer(response, add_special_tokens=False)["input_ids"]
    whole = tokenizer(prompt, add_special_tokens=messages is None)["input_ids"]
    whole = whole[:-1] if whole[-1] == tokenizer.eos_token_id else whole  # as prompts lose what the tokenizer appends
    kept = cut_left(whole, limit, tokenizer.bos_token_id)
    text = prompt if len(kept) == len(whole) else tokenizer.decode(kept, skip_special_tokens=True)
    batch = collate(
        [Prompt(token_ids=tuple(kept), text=text, messages=messages, columns={}, cut=len(kept) < len(whole))], 0
    )
    ids = torch.tensor([response])
    rollout = Trajectory(
        prompt_ids=batch.prompt_ids,
        prompt_mask=batch.prompt_mask,
        response_ids=ids,
        response_mask=torch.ones_like(ids, dtype=torch.bool),
        ended=torch.tensor([ended]),
    )
    return finished_responses(policy, batch, rollout, list(stop))


@torch.no_grad()
def score_of(folder, ids):
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    model.config.pad_token_id = None
    return model(input_ids=torch.tensor([ids])).logits[0, 0].item()


REPLIES = {  # response, whether it ended, stop strings: what is read of it with reward.eos auto, always and never
    "eos": (" good day<eos>", True, [], " good day<eos>", " good day<eos>", " good day"),
    "eos at once": ("<eos>", True, [], "<eos>", "<eos>", ""),
    "stop string": (" good day Human:", True, ["Human:"], " good day <eos>", " good day <eos>", " good day "),
    "one of two stop strings": (" good fox", True, ["dog", "fox"], " good <eos>", " good <eos>", " good "),
    "cut": (" good day", False, [], " good day", " good day<eos>", " good day"),
    "special tokens within": (" good<pad> day<eos>", True, [], " good day<eos>", " good day<eos>", " good day"),
}


@pytest.mark.parametrize("limit", [99, 4], ids=["whole prompt", "cut prompt"])
@pytest.mark.parametrize("bos", [False, True], ids=["plain", "bos"])
@pytest.mark.parametrize("reply", REPLIES)
def test_both_paths_read_the_same(made, tmp_path, reply, bos, limit):
    response, ended, stop, *texts = REPLIES[reply]
    policy, load = made(with_bos(make_tokenizer()) if bos else make_tokenizer())
    row = finished(policy, "the quick brown fox jumps over", response, ended=ended, stop=stop, limit=limit)
    head = cut_left(
        policy.tokenizer("the quick brown fox jumps over")["input_ids"], limit, policy.tokenizer.bos_token_id
    )
    for eos, text in zip(("auto", "always", "never"), texts, strict=True):
        ids = [*head, *policy.tokenizer(text, add_special_tokens=False)["input_ids"]]
        expected = pytest.approx([score_of(tmp_path / "shared", ids)], abs=1e-5)
        for name in ("shared", "anew"):
            scorer = load(name, eos=eos)
            assert scorer.passes_ids_through(chat=False) == (name == "shared")
            assert scorer(row) == expected, (eos, name)


def test_ids_pass_through_as_they_were_sampled(made, tmp_path):
    """Not as their text would be tokenized; a token that a stop string begins in gives way to its own first part."""
    policy, load = made(make_tokenizer(["quick quick fox fox fox"]))
    tokenizer = policy.tokenizer
    letters = [tokenizer.convert_tokens_to_ids(c) for c in "quick"]
    assert tokenizer("quick")["input_ids"] != letters
    row = finished(policy, "the", [*letters, *tokenizer(" Human")["input_ids"]], ended=True, stop=[" Human"])
    read = [*tokenizer("the")["input_ids"], *letters, tokenizer.eos_token_id]
    assert load("shared")(row) == pytest.approx([score_of(tmp_path / "shared", read)], abs=1e-5)
    (fox,) = tokenizer(" fox")["input_ids"]
    row = finished(policy, "the", [*letters, fox, fox], ended=True, stop=["ox fox"])
    read = [*read[:-1], *tokenizer(" f")["input_ids"], tokenizer.eos_token_id]
    assert row.responses == ["quick f"]
    assert load("shared")(row) == pytest.approx([score_of(tmp_path / "shared", read)], abs=1e-5)


@pytest.mark.parametrize("ended", [False, True])
def test_a_tokenizer_that_appends_eos_does_so_on_both_paths(made, tmp_path, ended):
    policy, load = made(with_bos(make_tokenizer(), end="<eos>"))
    row = finished(policy, "the fox", " day<eos>" if ended else " day", ended=ended)
    expected = score_of(tmp_path / "shared", policy.tokenizer("the fox day")["input_ids"])
    for eos in ("auto", "always", "never"):
        for name in ("shared", "anew"):
            assert load(name, eos=eos)(row) == pytest.approx([expected], abs=1e-5), (eos, name)


@pytest.mark.parametrize(
    ("response", "stop", "ended", "auto"),
    [
        ("bye<|im_end|>", [], True, "bye<|im_end|>"),
        ("bye<eos>", [], True, "bye<|im_end|>"),
        ("bye Human", [" Human"], True, "bye<|im_end|>"),
        ("bye", [], False, "bye"),
    ],
)
def test_the_policys_template_closes_the_turn_on_both_paths(made, tmp_path, response, stop, ended, auto):
    policy, load = made(make_chat_tokenizer("chatml"))
    row = finished(policy, ASKED, response, ended=ended, stop=stop, messages=tuple(CHATS))
    for eos, text in (("auto", auto), ("always", "bye<|im_end|>"), ("never", "bye")):
        expected = score_of(tmp_path / "shared", policy.tokenizer(ASKED + text)["input_ids"])
        for name in ("shared", "anew"):
            scorer = load(name, eos=eos, format="policy")
            assert scorer.passes_ids_through(chat=True) == (name == "shared")
            assert scorer(row) == pytest.approx([expected], abs=1e-5), (eos, name)


def test_a_template_closes_by_itself_and_always_adds_eos(made, tmp_path):
    policy, load = made(make_chat_tokenizer("chatml"))
    written = ASKED + "bye<|im_end|>\n"
    for ended, response in ((True, "bye<|im_end|>"), (False, "bye")):
        row = finished(policy, ASKED, response, ended=ended, messages=tuple(CHATS))
        for eos, text in (("auto", written), ("never", written), ("always", written + "<eos>")):
            expected = score_of(tmp_path / "shared", policy.tokenizer(text)["input_ids"])
            assert load("shared", eos=eos)(row) == pytest.approx([expected], abs=1e-5)


def test_eos_always_needs_one(made):
    tokenizer = make_tokenizer()
    policy, load = made(tokenizer)
    scorer = load("anew")
    scorer.tokenizer.eos_token = None
    with pytest.raises(UserError, match=r"^reward\.eos: always, but the tokenizer of .* has no EOS"):
        type(scorer)(
            scorer.model,
            scorer.tokenizer,
            RewardConfig(path="x", eos="always"),
            CPU,
            key="reward",
            shares_tokenizer=False,
            microbatch_tokens=9,
        )
    row = finished(policy, "the fox", " day<eos>", ended=True)
    assert len(scorer(row)) == 1
