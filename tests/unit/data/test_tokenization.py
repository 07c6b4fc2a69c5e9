"""Special tokens, templates and cutting. The tokenizers have one token a byte: 0 is <s>, 1 is </s>."""

import pytest

from apa_cli.data import tokenization
from apa_cli.data.prompts import Prompt
from apa_cli.data.tokenization import cut_left, encode, tokenize
from apa_cli.errors import UserError


def text_row(text):
    return Prompt(text=text, messages=None, columns={}, place="p.jsonl, line 1")


def chat_row(*messages):
    return Prompt(
        text="", messages=tuple({"role": r, "content": c} for r, c in messages), columns={}, place="p, line 4"
    )


def codes(tokenizer, text):
    return [tokenizer.convert_tokens_to_ids(character) for character in text]


def test_text_without_special_tokens(tokenizer):
    assert encode([text_row("ab"), text_row("cde")], tokenizer) == [codes(tokenizer, "ab"), codes(tokenizer, "cde")]
    assert encode([], tokenizer) == []


def test_bos_stays_and_an_appended_eos_goes(wrapping_tokenizer):
    assert wrapping_tokenizer("ab")["input_ids"] == [0, *codes(wrapping_tokenizer, "ab"), 1]
    assert encode([text_row("ab")], wrapping_tokenizer) == [[0, *codes(wrapping_tokenizer, "ab")]]


def test_an_eos_that_the_prompt_itself_holds_stays(tokenizer, wrapping_tokenizer):
    assert encode([text_row("a</s>")], tokenizer) == [[*codes(tokenizer, "a"), 1]]
    assert encode([text_row("a</s>")], wrapping_tokenizer) == [[0, *codes(wrapping_tokenizer, "a"), 1]]


def test_messages_go_through_the_template_with_one_bos_and_the_generation_prompt(chat_tokenizer):
    ids = encode([chat_row(("system", "x"), ("user", "hi")), chat_row(("user", "a"))], chat_tokenizer)
    assert ids[0] == [0, *codes(chat_tokenizer, "[system]x[user]hi[assistant]")]
    assert ids[1] == [0, *codes(chat_tokenizer, "[user]a[assistant]")]


def test_a_template_is_given_its_arguments(with_template):
    text = "{{ messages[0].content }}{% if add_generation_prompt %}[A]{% if think is false %}!{% endif %}{% endif %}"
    tokenizer = with_template(text)
    assert encode([chat_row(("user", "a"))], tokenizer) == [codes(tokenizer, "a[A]")]
    assert encode([chat_row(("user", "a"))], tokenizer, arguments={"think": False}) == [codes(tokenizer, "a[A]!")]
    with pytest.raises(
        UserError, match=r"^data.template_arguments: the policy's chat template reads no argument thnk;"
    ):
        encode([chat_row(("user", "a"))], tokenizer, arguments={"thnk": False})


def test_a_template_that_drops_the_system_message_in_silence(with_template):
    tokenizer = with_template("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}")
    with pytest.raises(
        UserError, match=r"^p, line 4: the policy's chat template leaves the system message out; take it"
    ):
        encode([chat_row(("system", "S"), ("user", "a"))], tokenizer)


def test_a_prompt_without_tokens(wrapping_tokenizer):
    with pytest.raises(UserError, match=r"p.jsonl, line 1: the tokenizer makes no tokens"):
        encode([text_row("")], wrapping_tokenizer)


@pytest.mark.parametrize(
    ("ids", "limit", "bos", "expected"),
    [
        ([5, 6, 7], 3, 5, [5, 6, 7]),
        ([5, 6, 7, 8], 3, None, [6, 7, 8]),
        ([5, 6, 7, 8], 3, 5, [5, 7, 8]),
        ([5, 6, 7, 8], 3, 6, [6, 7, 8]),
        ([5, 6, 7, 8], 2, 5, [5, 8]),
        ([5, 6, 7, 8], 1, 5, [8]),
        ([0, 6, 7], 2, 0, [0, 7]),
    ],
)
def test_cut_left(ids, limit, bos, expected):
    assert cut_left(ids, limit, bos) == expected


@pytest.mark.parametrize(("chunk", "begun"), [(1, [0, 1, 2, 3, 4, 5]), (4, [0, 4]), (9, [0])])
@pytest.mark.parametrize("special", [False, True])
def test_ids_are_the_same_in_whatever_parts(wrapping_tokenizer, monkeypatch, chunk, begun, special):
    texts = ["a b", "", "c a " * 9, "b", "the", "a"]
    monkeypatch.setattr(tokenization, "CHUNK", chunk)
    heard = []
    ids = tokenize(wrapping_tokenizer, texts, special=special, progress=lambda *said: heard.append(said))
    assert ids == [wrapping_tokenizer(text, add_special_tokens=special)["input_ids"] for text in texts]
    assert heard == [("tokenize", done, 6) for done in begun]
