"""Messages and their tools through templates, and texts that have been through one. Tokens are bytes, and <s>, </s>."""

import copy

import pytest
from refused import refusal

from apa_cli.data.messages import each_message
from apa_cli.data.prompts import Prompt
from apa_cli.data.table import Findings
from apa_cli.data.tokenization import encode
from apa_cli.errors import UserError

PLACE = "p.jsonl, line 1"
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds."}}]
CALL = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
ASKED = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "name": "add", "tool_call_id": "9", "content": '{"sum": "3"}'},
]
HEAD = "{% if tools %}[tools]{{ tools | tojson }}{% endif %}"
TURN = "[{{ m.role }}]{{ m.content | trim }}"
CALLED = "{% for c in m.tool_calls %}<{{ c.function.name }} {{ c.function.arguments.a }}>{% endfor %}"
END = "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
EACH = "{% for m in messages %}"


def tool_row(messages=ASKED, tools=TOOLS):
    messages = each_message(messages, "p, line 4")
    return Prompt(text="", messages=messages, columns={"tools": tools}, place="p, line 4")


def chat_row(*turns):
    return tool_row([{"role": role, "content": content} for role, content in turns], None)


def text_row(text):
    return Prompt(text=text, messages=None, columns={}, place=PLACE)


def read(tokenizer, *rows, **settings):
    findings = Findings()
    ids = encode(rows, tokenizer, findings=findings, **settings)
    return [tokenizer.decode(row) for row in ids], findings.lines()


def test_tools_calls_and_results_reach_the_policy(with_template):
    texts, _ = read(with_template(HEAD + EACH + TURN + CALLED + END), tool_row())
    assert texts[0].startswith('[tools][{"type": "function", "function": {"name": "add"')
    assert texts[0].endswith('[user]a[assistant]<add 1>[tool]{"sum": "3"}[assistant]')


def test_a_row_without_tools_needs_no_template_that_takes_them(with_template):
    assert read(with_template(EACH + TURN + END), tool_row(ASKED[:1], None)) == (["[user]a[assistant]"], [])


def test_a_result_may_be_written_as_json(with_template):
    turn = "[{{ m.role }}]{% if m.role == 'tool' %}{{ m.content | tojson }}{% else %}{{ m.content }}{% endif %}"
    texts, _ = read(with_template(HEAD + EACH + turn + CALLED + END), tool_row())
    assert r'[tool]"{\"sum\": \"3\"}"' in texts[0]


LEFT_OUT = [
    (  # what it writes of a call is what the message says beside it
        HEAD + EACH + TURN + "{% if m.tool_calls %}[calls]{{ m.content }}{% endif %}" + END,
        tool_row(),
        "the policy's chat template leaves tool_calls out",
    ),
    ("{% if tools %}[tools]{% endif %}" + EACH + TURN + END, tool_row(ASKED[:1]), "chat template takes no tools"),
    (EACH + TURN + CALLED + END, tool_row(), "the policy's chat template takes no tools, or not all of them; use"),
    (HEAD + EACH + TURN + END, tool_row(), "the policy's chat template leaves tool_calls out, or some of them; "),
    (  # of two calls the first alone
        HEAD + EACH + TURN + "{% for c in (m.tool_calls or [])[:1] %}<{{ c.function.name }}>{% endfor %}" + END,
        tool_row([ASKED[0], {**ASKED[1], "tool_calls": [CALL, {"name": "subtract", "arguments": {}}]}, ASKED[2]]),
        "the policy's chat template leaves tool_calls out",
    ),
    (
        "{% for m in messages if m.role != 'tool' %}" + TURN + CALLED + END,
        tool_row(tools=None),
        "the policy's chat template leaves out what message 3 (tool) says",
    ),
    ("{{ messages[-1].content }}", chat_row(("user", "x"), ("assistant", "y"), ("user", "z")), "what message 1 (user)"),
    ("{{ messages[-1].content[:3] }}", chat_row(("user", "abcdef")), "what message 1 (user) says"),
]


@pytest.mark.parametrize(("template", "row", "words"), LEFT_OUT)
def test_a_template_that_leaves_something_out_is_refused(with_template, template, row, words):
    line = refusal(read, with_template(template), row)
    assert line.startswith("p, line 4: ")
    assert words in line


def test_thoughts_of_earlier_answers_may_be_left_out(with_template):
    turn = "[{{ m.role }}]{{ m.content.split('</think>')[-1] }}"
    row = chat_row(("user", "x"), ("assistant", "<think>hm</think>\n\nyes"), ("user", "z"))
    texts, findings = read(with_template(EACH + turn + END), row)
    assert "hm" not in texts[0]
    assert findings == [
        "the policy's chat template leaves out the thoughts of earlier answers: 1 prompt, the first p, line 4"
    ]


def test_markers_in_a_message(with_template):
    tokenizer = with_template("{{ bos_token }}" + EACH + TURN + "{{ eos_token }}" + END)
    _, findings = read(tokenizer, chat_row(("user", "a</s>b")), chat_row(("user", "a")))
    assert findings == [
        "</s> in a message is read as a marker of the chat template, not as text: 1 prompt, the first p, line 4"
    ]
    with pytest.raises(UserError, match=r"^p, line 4: a message of the user holds a rendered .*'</s>\[assistant\]'; "):
        read(tokenizer, chat_row(("user", "[user]a</s>[assistant]")))


def with_bos(tokenizer, template):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    return tokenizer


BOTH = "{{ bos_token }}" + EACH + TURN + "{{ eos_token }}" + END
PLAIN = "{% for m in messages %}{{ m.content }}\n\nAssistant:{% endfor %}"
NO_BOS = EACH + TURN + "{{ eos_token }}" + END
RENDERED = "text that holds the markers of the policy's chat template is read as it stands: 1 prompt, the first {}"
ONCE = "special tokens that a text begins with are not added once more: 1 prompt, the first {}"


@pytest.mark.parametrize(
    ("template", "text", "expected", "found"),
    [
        (None, "<s>a", "<s>a", [ONCE]),
        (None, "a", "<s>a", []),
        (None, "<s>", "<s>", [ONCE]),
        (BOTH, "<s>[user]a</s>[assistant]", "<s>[user]a</s>[assistant]", [RENDERED, ONCE]),
        (BOTH, "[user]a</s>[assistant]", "<s>[user]a</s>[assistant]", [RENDERED]),
        (NO_BOS, "[user]a</s>[assistant]", "[user]a</s>[assistant]", [RENDERED]),
        (NO_BOS, "a</s>b", "<s>a</s>b", []),
        (PLAIN, "a\n\nAssistant:", "<s>a\n\nAssistant:", []),
        (None, "<|im_start|>user", "<s><|im_start|>user",
         ["the policy's tokenizer reads <|im_start|> as plain characters: 1 prompt, the first {}"]),
    ],
)  # fmt: skip
def test_a_text_that_has_been_through_a_template(wrapping_tokenizer, template, text, expected, found):
    tokenizer = with_bos(wrapping_tokenizer, template)
    assert read(tokenizer, text_row(text)) == ([expected], [line.format(PLACE) for line in found])


def test_one_bos_beside_rows_that_bring_none(wrapping_tokenizer):
    rows = [text_row("<s>a"), text_row("b"), text_row("<s><s>")]
    a, b = wrapping_tokenizer.convert_tokens_to_ids(["a", "b"])
    assert encode(rows, wrapping_tokenizer) == [[0, a], [0, b], [0, 0]]
