"""What is shown of the first prompt is what the models are given."""

import json

import pytest
from tiny_models import CPU, make_chat_tokenizer, make_config, make_tokenizer, save_policy, save_reward

from apa_cli.data import load_prompts
from apa_cli.errors import UserError
from apa_cli.models.policy_loading import load_policy
from apa_cli.rewards.preview import check_templates, planned_readings, readings, visible
from apa_cli.rewards.scorers import load_reward

ASKED = [{"role": "user", "content": "hi\nyou"}]
RENDERED = "<|im_start|>user\nhi\nyou<|im_end|>\n<|im_start|>assistant\n"
POLICY = r"policy     reads <|im_start|>user\nhi\nyou<|im_end|>\n<|im_start|>assistant\n"
HEADERS = (
    r"<|begin|><|header|>user<|end_header|>\n\nhi\nyou<|eot|>"
    r"<|header|>assistant<|end_header|>\n\n(the response)<|eot|>"
)


@pytest.fixture
def read(tmp_path):
    """Lines of a ChatML policy and a reward model, and of the plan of the same run, which must agree."""

    def read(row, reward="headers", before="", **changes):
        (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
        policy_tokenizer = make_chat_tokenizer("chatml")
        tokenizer = make_chat_tokenizer(reward) if reward else make_tokenizer()
        for each in (policy_tokenizer, tokenizer) if before else ():
            each.chat_template = before + each.chat_template
        save_policy(tmp_path / "policy", policy_tokenizer)
        save_reward(tmp_path / "reward", tokenizer)
        changes = {"reward__kind": "model", "reward__function": None, "evaluation__prompts": 0, **changes}
        path = {"data__path": str(tmp_path / "a.jsonl"), "reward__path": str(tmp_path / "reward")}
        config = make_config(tmp_path / "policy", **path, **changes)
        policy = load_policy(config.policy, CPU)
        scorers = {"reward": load_reward(config.reward, policy, CPU, microbatch_tokens=64)}
        prompts, _ = load_prompts(config.data, policy.tokenizer, evaluation_prompts=0, seed=0)
        check_templates(prompts, scorers)
        lines = readings(prompts.prompts[0], policy, scorers)
        assert [line for line in planned_readings(config, CPU)[1] if " reads " in line[:20]] == lines
        return lines

    return read


def test_each_model_is_shown_with_its_own_template(read):
    assert read({"messages": ASKED}) == [POLICY, f"reward     reads {HEADERS}"]
    same = [POLICY, POLICY.replace("policy    ", "reward    ") + r"(the response)<|im_end|>\n"]
    assert read({"messages": ASKED}, "chatml", reward__format="chat") == same


def test_tools_reach_the_reward_models_template_too(read):
    tools = [{"name": "add"}]
    lines = read({"messages": ASKED, "tools": tools}, before="{% if tools %}{{ tools | tojson }}{% endif %}")
    assert [line.split(" reads ")[1][:17] for line in lines] == [json.dumps(tools)] * 2


def test_a_text_is_shown_with_what_its_reward_model_closes_it_by(read):
    assert read({"prompt": "hi\x1b[0m"}, None) == [
        r"policy     reads hi\x1b[0m",
        r"reward     reads hi\x1b[0m(the response)<eos>",
    ]


def test_a_second_template_around_a_rendered_prompt_is_refused(read):
    with pytest.raises(UserError, match=r"^reward.format: the prompts have been through .* set reward.format=policy$"):
        read({"prompt": RENDERED})
    lines = read({"prompt": RENDERED}, reward__format="policy")
    assert lines[0] == POLICY
    assert lines[1].startswith(POLICY.replace("policy    ", "reward    ") + "(the response)")


def test_a_long_text_is_cut_in_the_middle():
    assert visible("a" * 700 + "\n" + "b" * 700) == f"{'a' * 600} […201 characters…] {'b' * 600}"
