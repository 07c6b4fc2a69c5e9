"""A reward model that is a PEFT adapter scores as peft itself has it, or is refused with what to do."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, TaskType, get_peft_model
from refused import refusal
from safetensors.torch import load_file, save_file
from tiny_models import CPU, make_config, save_encoder_reward, save_policy, save_reward
from transformers import AutoModelForSequenceClassification

from apa_cli.config.schema import RewardConfig
from apa_cli.errors import UserError
from apa_cli.models.policy_loading import load_policy
from apa_cli.rewards.record import FinishedResponses
from apa_cli.rewards.scorers import load_reward
from apa_cli.training.memory_plan import make_plan

TEXTS = ["the quick brown fox", "Human: hello there", "to you"]


def save_adapter(folder, base, *, labels=1, tokenizer=None, kind=None, **settings):
    """As a trainer of reward models leaves it: LoRA and the head, no config.json."""
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels, ignore_mismatched_sizes=True)
    model = get_peft_model(model, kind or LoraConfig(r=2, task_type=TaskType.SEQ_CLS, **settings))
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data = torch.randn_like(parameter) * 0.3
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def policy(policy_dir):
    return load_policy(make_config(policy_dir()).policy, CPU)


def scores(folder, policy, **settings):
    finished = FinishedResponses(
        prompts=TEXTS,
        responses=[""] * len(TEXTS),
        messages=None,
        columns={},
        token_ids=policy.tokenizer(TEXTS)["input_ids"],
    )
    return load_reward(RewardConfig(path=str(folder), **settings), policy, CPU, microbatch_tokens=100)(finished)


@torch.no_grad()
def expected(folder, tokenizer, labels=1):
    """As peft runs it, unmerged, on one sequence at a time."""
    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels, ignore_mismatched_sizes=True)
    model = PeftModel.from_pretrained(model, folder).eval()
    model.config.pad_token_id = None
    rows = [model(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).logits[0] for text in TEXTS]
    return [float(row[0] if labels == 1 else row[1] - row[0]) for row in rows]


@pytest.mark.parametrize("own_tokenizer", [True, False])
@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize("base", ["language model", "decoder", "encoder"])
def test_an_adapter_scores_as_peft_has_it(policy, tmp_path, plain_tokenizer, base, labels, own_tokenizer):
    save = {"language model": save_policy, "decoder": save_reward, "encoder": save_encoder_reward}[base]
    save(tmp_path / "base", plain_tokenizer)
    folder = save_adapter(
        tmp_path / "adapter", tmp_path / "base", labels=labels, tokenizer=plain_tokenizer if own_tokenizer else None
    )
    found = scores(folder, policy, **({"label": 1} if labels == 2 else {}))
    assert found == pytest.approx(expected(folder, plain_tokenizer, labels), abs=1e-4)
    assert len({round(score, 3) for score in found}) == 3


def test_it_differs_from_its_base_and_is_in_the_plan(policy, policy_dir, tmp_path, plain_tokenizer):
    base = save_reward(tmp_path / "base", plain_tokenizer)
    folder = save_adapter(tmp_path / "adapter", base, labels=2)
    assert scores(folder, policy, label=0) != pytest.approx(scores(base, policy), abs=1e-2)
    config = make_config(policy_dir(), reward__kind="model", reward__function=None, reward__path=str(folder))
    role = make_plan(config, CPU).roles["reward"]
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2, ignore_mismatched_sizes=True)
    assert role.parameters == sum(p.numel() for p in model.parameters())


def test_from_the_hub(policy, tmp_path, plain_tokenizer, monkeypatch):
    """What is asked of the Hub is found in a folder here."""
    base = save_reward(tmp_path / "base", plain_tokenizer)
    folder = save_adapter(tmp_path / "adapter", base, tokenizer=plain_tokenizer)
    asked = []

    def download(name, revision=None, allow_patterns=()):
        asked.append((name, revision, allow_patterns))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr("transformers.utils.peft_utils.find_adapter_config_file", lambda *_, **__: "found")
    found = scores("somebody/adapter", policy, revision="v1")
    assert found == pytest.approx(expected(folder, plain_tokenizer), abs=1e-4)
    assert asked[0][:2] == ("somebody/adapter", "v1")
    assert "tokenizer*" in asked[0][2]
    assert not any("bin" in pattern for pattern in asked[0][2])


def with_weights(change):
    def spoil(folder, tmp_path):
        weights = load_file(folder / "adapter_model.safetensors")
        save_file(change(weights), folder / "adapter_model.safetensors")

    return spoil


def with_config(**changes):
    def spoil(folder, tmp_path):
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))

    return spoil


def pickled(folder, tmp_path):
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def of_prompts(folder, tmp_path):
    shutil.rmtree(folder)
    save_adapter(folder, tmp_path / "base", kind=PromptTuningConfig(num_virtual_tokens=2, task_type=TaskType.SEQ_CLS))


drop_head = with_weights(lambda weights: {n: t for n, t in weights.items() if "score" not in n})
spare_weight = with_weights(lambda weights: {**weights, "base_model.model.more": torch.zeros(1)})
not_finite = with_weights(lambda weights: {n: t * torch.nan if "lora_B" in n else t for n, t in weights.items()})
elsewhere, nameless = (with_config(base_model_name_or_path=name) for name in ("/no/such/base", None))
of_another_base = with_config(init_lora_weights="pissa_niter_2")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (drop_head, ["lacks weights", "score.weight", "merge"]),
        (spare_weight, ["no adapter of", "more", "merge"]),
        (elsewhere, ["PEFT adapter on /no/such/base: no folder", "base_model_name_or_path", "merge"]),
        (pickled, ["only pickled weights"]),
        (nameless, ["does not name its base", "merge"]),
        (of_prompts, ["adds to the prompt", "LoRA"]),
        (of_another_base, ["pissa_niter_2 changes the base", "path_initial_model_for_weight_conversion"]),
        (not_finite, ["cannot be merged", "merge"]),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_line(policy, tmp_path, plain_tokenizer, spoil, words):
    base = save_policy(tmp_path / "base", plain_tokenizer)
    folder = save_adapter(tmp_path / "adapter", base, tokenizer=plain_tokenizer)
    spoil(folder, tmp_path)
    message = refusal(scores, folder, policy)
    assert message.startswith("reward.path: "), message
    assert [word for word in words if word not in message] == [], message


def test_an_adapter_of_a_language_model_is_no_reward_model(policy, adapter_dir):
    with pytest.raises(UserError, match=r"^reward\.path: .* is a PEFT adapter on .*lacks weights of this model"):
        scores(adapter_dir, policy)
