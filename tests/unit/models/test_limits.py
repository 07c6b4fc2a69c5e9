"""How much each kind of model can be fed, held against what it does with as much, and with one token more."""

import pytest
import torch
import transformers
from tiny_models import CPU, make_config, make_tokenizer, save_policy, save_reward
from tokenizers import processors

from apa_cli.config.schema import RewardConfig
from apa_cli.data.prompts import Prompt, check_room
from apa_cli.errors import UserError
from apa_cli.models.limits import Room, room_of
from apa_cli.models.policy_loading import load_policy
from apa_cli.models.roles import load_models
from apa_cli.models.token_ids import check_vocabulary, filling_id
from apa_cli.rewards.record import FinishedResponses
from apa_cli.rewards.scorers import load_reward

SIZES = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
PLAIN = {**SIZES, "intermediate_size": 16, "max_position_embeddings": 34, "pad_token_id": 1}
GPT = {"vocab_size": 300, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 34, "pad_token_id": 0}
BART = {f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("layers", "attention_heads", "ffn_dim")}
KINDS = {  # class of the configuration: its settings, and the room that there is
    "RobertaConfig": (PLAIN, Room(32, True)),
    "BigBirdConfig": (PLAIN, Room(34, True)),
    "BertConfig": (PLAIN, Room(34, True)),
    "NystromformerConfig": (PLAIN, Room(34, True)),
    "ModernBertConfig": ({**PLAIN, "pad_token_id": 0}, Room(34, False)),
    "GPT2Config": (GPT, Room(34, True)),
    "GPTJConfig": ({**GPT, "rotary_dim": 4}, Room(34, True)),
    "GPTNeoXConfig": (PLAIN, Room(34, False)),
    "LlamaConfig": (PLAIN, Room(34, False)),
    "OPTConfig": ({**PLAIN, "ffn_dim": 16, "word_embed_proj_dim": 16}, Room(34, True)),
    "MptConfig": ({"vocab_size": 300, "d_model": 16, "n_layers": 1, "n_heads": 2, "max_seq_len": 34}, Room(34, True)),
    "FalconConfig": (PLAIN, Room(34, False)),
    "BloomConfig": ({"vocab_size": 300, "hidden_size": 16, "n_layer": 1, "n_head": 2}, None),
    "BartConfig": ({"vocab_size": 300, "d_model": 16, **BART, "max_position_embeddings": 34}, Room(34, True)),
}


def takes(model, tokens):
    try:
        model.base_model(input_ids=torch.full((1, tokens), 5))
    except (IndexError, RuntimeError):
        return False
    return True


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_the_room_is_what_the_model_takes(kind):
    settings, room = KINDS[kind]
    config = getattr(transformers, kind)(**settings)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    assert room_of(model) == room
    assert takes(model, 34 if room is None else room.tokens)
    assert takes(model, 35 if room is None else room.tokens + 1) == (room is None or not room.firm)


def save_roberta(folder, tokenizer, **changes):
    torch.manual_seed(0)
    config = transformers.RobertaConfig(**{**PLAIN, "num_labels": 1, "initializer_range": 0.5, **changes})
    transformers.RobertaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.model_max_length = 10**30  # as where nobody has set it
    tokenizer.save_pretrained(folder)
    return folder


def finished(prompts, **changes):
    return FinishedResponses(
        **{"prompts": prompts, "responses": [" a"] * len(prompts), "messages": None, "columns": {}, **changes},
        token_ids=[[7]] * len(prompts),
    )


@pytest.fixture
def policy(policy_dir):
    return load_policy(make_config(policy_dir()).policy, CPU)


def load(folder, policy, **settings):
    return load_reward(RewardConfig(path=str(folder), **settings), policy, CPU, microbatch_tokens=10**6)


def test_a_roberta_without_a_length_reads_as_much_as_it_can(policy, tmp_path):
    folder = save_roberta(tmp_path, make_tokenizer(["other merges altogether"], vocabulary=280))
    scorer = load(folder, policy, format="text")
    assert scorer.max_tokens == 32
    long, longer = "x y " * 30, "z " + "x y " * 30
    assert scorer(finished([long, longer]))[0] == pytest.approx(scorer(finished([long]))[0], abs=1e-5)
    assert load(folder, policy, max_tokens=32).max_tokens == 32
    with pytest.raises(UserError, match=r"^reward\.max_tokens: 33, and .* has positions for 32 tokens; lower it"):
        load(folder, policy, max_tokens=33)


def test_a_length_that_is_only_set_may_be_exceeded(policy, tmp_path):
    save_reward(tmp_path, make_tokenizer())  # rotary
    assert load(tmp_path, policy).max_tokens == 1024
    assert load(tmp_path, policy, max_tokens=2000).max_tokens == 2000


@torch.no_grad()
def test_a_pair_has_segments_only_where_the_model_tells_them_apart(policy, tmp_path):
    tokenizer = make_tokenizer(["other merges altogether"], vocabulary=280)
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A", pair="$A <eos> $B:1", special_tokens=[("<eos>", 0)]
    )
    scorer = load(save_roberta(tmp_path, tokenizer, type_vocab_size=1), policy, format="pair")
    ids = torch.tensor([tokenizer("the fox", " a")["input_ids"]])
    assert tokenizer("the fox", " a")["token_type_ids"][-1] == 1
    assert scorer(finished(["the fox"])) == pytest.approx([scorer.model(input_ids=ids).logits.item()], abs=1e-5)


def test_ids_beyond_a_reward_models_embedding(policy, tmp_path):
    """An added token that a prompt holds, or a template writes; a pad token that is out of reach is left alone."""
    tokenizer = make_tokenizer(["other merges altogether"], vocabulary=280)
    save_reward(tmp_path, tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]", "additional_special_tokens": ["<|turn|>"]})
    tokenizer.save_pretrained(tmp_path)
    scorer = load(tmp_path, policy)
    assert len(scorer(finished(["a", "a b c d e f"]))) == 2
    with pytest.raises(UserError, match=r"^reward\.path: the tokenizer writes <\|turn\|> as id 274, and .* below 273"):
        scorer(finished(["a <|turn|>"]))
    tokenizer.chat_template = "{% for m in messages %}<|turn|>{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"^reward\.path: the tokenizer writes <\|turn\|> as id 274"):
        load(tmp_path, policy)(finished(["a"]))


def test_ids_beyond_the_policys_embedding(tmp_path):
    tokenizer = make_tokenizer()
    folder = save_policy(tmp_path, tokenizer)
    tokenizer.add_tokens(["<tool>"])
    tokenizer.save_pretrained(folder)
    policy = load_policy(make_config(folder).policy, CPU)
    limits = {"max_new_tokens": 1, "room": None, "tokenizer": policy.tokenizer, "model": "policy"}
    prompts = [
        Prompt(token_ids=tuple(policy.tokenizer(text)["input_ids"]), text=text, messages=None, columns={}, place=text)
        for text in ("the fox", "the <tool>")
    ]
    check_room(prompts[:1], known=policy.known_ids, **limits)
    with pytest.raises(UserError, match=r"^the <tool>: <tool> has id 300, and the policy knows ids below 300; take"):
        check_room(prompts, known=policy.known_ids, **limits)


def test_an_eos_that_no_response_can_have(tmp_path):
    tokenizer = make_tokenizer()
    folder = save_policy(tmp_path, tokenizer)
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match=r"^policy\.path: the tokenizer writes <\|im_end\|> as id 300, and the"):
        load_policy(make_config(folder).policy, CPU)


def test_what_rectangles_are_filled_with():
    tokenizer = make_tokenizer()
    assert filling_id(tokenizer, 300) == tokenizer.pad_token_id == 1
    assert filling_id(tokenizer, 1) == tokenizer.eos_token_id == 0
    assert filling_id(make_tokenizer(pad=False), 300, [7]) == 7
    check_vocabulary("key", "path", transformers.GPT2Model(transformers.GPT2Config(**GPT)), tokenizer)


def test_reference_and_critic_have_limits_of_their_own(policy_dir, tmp_path):
    short = save_policy(tmp_path / "short", make_tokenizer(), kind="gpt2")
    models = load_models(make_config(policy_dir(), value__path=str(short)), CPU)
    assert models.limits() == {"policy": (1024, 300), "reference": (1024, 300), "critic": (1024, 300)}
    opt = load_models(make_config(policy_dir(kind="opt"), policy__adapter__r=2, value__kind="shared"), CPU)
    assert opt.limits() == {"policy": (1024, 300)}
