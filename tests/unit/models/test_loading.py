"""What cannot be loaded is refused in one line that names the key."""

import json
import shutil

import pytest
from refused import refusal
from tiny_models import CPU, make_config, make_tokenizer
from transformers import AutoModelForCausalLM

from apa_cli.errors import UserError
from apa_cli.models.policy_loading import load_policy
from apa_cli.models.roles import load_models
from apa_cli.rewards.scorers import load_scorers


@pytest.fixture
def copy(policy_dir, tmp_path):
    """A policy folder to spoil."""
    return shutil.copytree(policy_dir(), tmp_path / "copy")


def refused(policy, key, *words, **changes):
    def load():
        config = make_config(policy, **changes)
        load_scorers(config, load_models(config, CPU).policy, CPU)

    message = refusal(load)
    assert message.startswith(f"{key}: "), message
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize("key", ["policy.path", "reference.path", "value.path", "policy.adapter.path", "reward.path"])
def test_a_missing_folder(tmp_path, policy_dir, key):
    changes = {key.replace(".", "__"): str(tmp_path / "nowhere")}
    if key == "reward.path":
        changes |= {"reward__kind": "model", "reward__function": None}
    refused(changes.pop("policy__path", policy_dir()), key, "nowhere", **changes)


def test_a_file(copy):
    refused(copy / "config.json", "policy.path", "is a file")


@pytest.mark.parametrize("key", ["reference.path", "value.path"])
def test_another_tokenizer_of_the_same_size(policy_dir, tmp_path, key):
    """Its ids mean other tokens. Names of special tokens may differ, and a folder may have no tokenizer at all."""
    other = shutil.copytree(policy_dir(seed=9), tmp_path / "other")
    make_tokenizer(["zz yy xx ww vv uu tt ss"] * 9).save_pretrained(other)
    changes = {key.replace(".", "__"): str(other)}
    refused(policy_dir(), key, "the tokenizer in", "ids differ", **changes)
    with pytest.raises(UserError, match=r"^checkpoint: .* ids differ"):  # as apa-eval loads one
        load_policy(make_config(policy_dir()).policy, CPU, weights=other)
    renamed = json.loads((policy_dir() / "tokenizer.json").read_text().replace("<pad>", "<|reserved|>"))
    (other / "tokenizer.json").write_text(json.dumps(renamed))
    config = json.loads((policy_dir() / "tokenizer_config.json").read_text().replace("<pad>", "<|reserved|>"))
    (other / "tokenizer_config.json").write_text(json.dumps(config))
    load_models(make_config(policy_dir(), **changes), CPU)
    for file in other.glob("tokenizer*"):
        file.unlink()
    load_models(make_config(policy_dir(), **changes), CPU)


def test_a_critic_is_never_filled_with_random_weights(copy, policy_dir):
    shutil.copy(policy_dir(kind="llama") / "model.safetensors", copy / "model.safetensors")
    refused(policy_dir(), "value.path", "lacks weights", value__path=str(copy))


def test_an_adapter_that_is_no_change_of_weights(policy_dir, tmp_path):
    from peft import AdaptionPromptConfig, PromptTuningConfig, get_peft_model

    folder = policy_dir(kind="llama")
    for config in (AdaptionPromptConfig(adapter_len=2, adapter_layers=1), PromptTuningConfig(num_virtual_tokens=2)):
        config.task_type = "CAUSAL_LM"
        get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config).save_pretrained(tmp_path)
        refused(folder, "policy.adapter.path", "LoRA", policy__adapter__path=str(tmp_path))


def test_a_revision_is_no_hindrance_to_a_folder(policy_dir):
    load_models(make_config(policy_dir(), policy__revision="main"), CPU)


@pytest.mark.parametrize("changes", [{}, {"policy__adapter__r": 2, "value__kind": "separate"}])
def test_quantized_weights_are_not_trained(policy_dir, tmp_path, changes):
    """transformers would say so at the first checkpoint only."""
    folder = tmp_path / "quantized"
    shutil.copytree(policy_dir(), folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gguf"}}))
    with pytest.raises(UserError, match=r"is quantized \(gguf\).*; add "):
        load_models(make_config(folder, **changes), CPU)
