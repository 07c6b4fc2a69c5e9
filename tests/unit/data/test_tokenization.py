"""Special tokens, templates and cutting. The tokenizers have one token a byte: 0 is <s>, 1 is </s>."""

import pytest

from apa_cli.data.formats import Row
from apa_cli.data.tokenization import cut_left, encode
from apa_cli.errors import UserError


def text_row(text):
    return Row(text=text, messages=None, columns={}, place="p.jsonl, line 1")


def chat_row(*messages):
    return Row(text="", messages=tuple({"role": r, "content": c} for r, c in messages), columns={}, place="p, line 4")


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


def test_no_template(tokenizer):
    with pytest.raises(UserError, match=r"data.format: .*no chat template; "):
        encode([chat_row(("user", "a"))], tokenizer)


def test_a_template_that_refuses(chat_tokenizer):
    with pytest.raises(UserError, match="p, line 4: the chat template refuses the messages: tools are not"):
        encode([chat_row(("tool", "a"), ("user", "b"))], chat_tokenizer)


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
