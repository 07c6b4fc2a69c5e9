"""Which tokens end a response, as each family of chat models has it."""

import pytest
from tiny_models import CHAT_FAMILIES, CHATML, CPU, make_chat_tokenizer, make_config, make_tokenizer, save_policy

from apa_cli.errors import UserError
from apa_cli.models.roles import load_models
from apa_cli.models.token_ids import end_of_turn


@pytest.mark.parametrize("family", CHAT_FAMILIES)
def test_the_end_of_turn_is_what_follows_an_answer(family):
    tokenizer = make_chat_tokenizer(family)
    assert tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer)) == CHAT_FAMILIES[family][2]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, None),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", None),  # no token of its own
        ("{% for m in messages %}[{{ m.content }}]{% endfor %}", None),  # an ordinary one
        ("{% for m in messages %}{{ m.content }}{% endfor %}<pad>", "<pad>"),
        ("{% for m in messages %}{{ m.content }} {{ eos_token }}{% endfor %}", "<eos>"),  # as Llama 2 has it
        ("{{ raise_exception('one message only') }}", None),
        ("{{ messages[0].content }}", None),  # leaves answers out
        (CHATML.replace("{{ message.content }}", "{{ message.content }}{{ message.content }}"), "<|im_end|>"),
    ],
)
def test_other_templates(template, expected):
    tokenizer = make_tokenizer(specials=("<|im_start|>", "<|im_end|>"))
    tokenizer.chat_template = template
    found = end_of_turn(tokenizer)
    assert (None if found is None else tokenizer.convert_ids_to_tokens(found)) == expected


def ends(folder, **changes):
    policy = load_models(make_config(folder, **changes), CPU).policy
    names = policy.tokenizer.convert_ids_to_tokens(policy.eos_token_ids)
    return dict(zip(names, policy.ends.values(), strict=True))


def test_all_that_ends_a_response_and_where_it_comes_from(tmp_path):
    tokenizer = make_chat_tokenizer("headers")
    save_policy(tmp_path, tokenizer, generation={"eos_token_id": [0, 70], "bos_token_id": 0})
    found = ends(tmp_path, generation__stop_tokens=["<|header|>", "<|eot|>"])
    assert found == {
        "<eos>": "EOS",
        "<|eot|>": "the chat template's end of turn",
        "<|header|>": "generation.stop_tokens",
        tokenizer.convert_ids_to_tokens(70): "generation_config.json",
    }
    with pytest.raises(UserError, match=r"^generation.stop_tokens: <eot> is no token .*; did you mean"):
        ends(tmp_path, generation__stop_tokens=["<eot>"])
    with pytest.raises(UserError, match=r"name a token of its vocabulary; strings go into generation.stop$"):
        ends(tmp_path, generation__stop_tokens=["Humans say"])


def test_a_token_that_the_model_lacks_ends_nothing(tmp_path):
    save_policy(tmp_path, make_tokenizer())
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})  # beyond the model's vocabulary
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(tmp_path)
    assert ends(tmp_path) == {"<eos>": "EOS"}
    with pytest.raises(UserError, match=r"^generation.stop_tokens: <\|im_end\|> is no token"):
        ends(tmp_path, generation__stop_tokens=["<|im_end|>"])
