"""What cannot be loaded is refused in one line that names the key."""

import json
import shutil

import pytest
import torch
from tiny_models import CPU, make_config, make_tokenizer, save_policy
from transformers import AutoModelForCausalLM, T5Config, T5ForConditionalGeneration

from apa_cli.errors import UserError
from apa_cli.models.device import select_runtime
from apa_cli.models.policy_loading import load_policy
from apa_cli.models.roles import load_models
from apa_cli.rewards.scorers import load_scorers


@pytest.fixture
def copy(policy_dir, tmp_path):
    """A policy folder to spoil."""
    return shutil.copytree(policy_dir(), tmp_path / "copy")


@pytest.fixture(scope="session")
def encoder_decoder(tmp_path_factory, plain_tokenizer):
    folder = tmp_path_factory.mktemp("t5")
    config = T5Config(
        vocab_size=300, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0, pad_token_id=1
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    plain_tokenizer.save_pretrained(folder)
    return folder


def refused(policy, key, *words, **changes):
    def load():
        config = make_config(policy, **changes)
        load_scorers(config, load_models(config, CPU).policy, CPU)

    with pytest.raises(UserError) as caught:
        load()
    message = str(caught.value)
    assert message.startswith(f"{key}: "), message
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_a_missing_folder(tmp_path, policy_dir):
    refused(tmp_path / "nowhere", "policy.path", "nowhere")
    refused(policy_dir(), "reference.path", "nowhere", reference__path=str(tmp_path / "nowhere"))
    refused(policy_dir(), "value.path", "nowhere", value__path=str(tmp_path / "nowhere"))
    refused(policy_dir(), "policy.adapter.path", "nowhere", policy__adapter__path=str(tmp_path / "nowhere"))
    refused(
        policy_dir(),
        "reward.path",
        "nowhere",
        reward__kind="model",
        reward__path=str(tmp_path / "nowhere"),
        reward__function=None,
    )


def test_a_file(copy):
    refused(copy / "config.json", "policy.path", "is a file")


def test_a_folder_without_config(copy):
    (copy / "config.json").unlink()
    refused(copy, "policy.path", "no config.json")


def test_an_adapter_given_as_a_model(adapter_dir):
    refused(adapter_dir, "policy.path", "PEFT adapter", "policy.adapter.path")


def test_a_model_given_as_an_adapter(policy_dir):
    refused(policy_dir(), "policy.adapter.path", "adapter_config.json", policy__adapter__path=str(policy_dir()))


def test_pickled_weights_only(copy):
    model = AutoModelForCausalLM.from_pretrained(copy)
    torch.save(model.state_dict(), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    refused(copy, "policy.path", "pickled", "safetensors")


def test_a_pickled_adapter(policy_dir, adapter_dir, tmp_path):
    folder = shutil.copytree(adapter_dir, tmp_path / "adapter")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    refused(policy_dir(), "policy.adapter.path", "adapter_model.safetensors", policy__adapter__path=str(folder))


def test_no_weights_at_all(copy):
    (copy / "model.safetensors").unlink()
    refused(copy, "policy.path")


def test_damaged_files(copy):
    good = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(good[: len(good) // 2])
    refused(copy, "policy.path")
    (copy / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    refused(copy, "policy.path")
    (copy / "model.safetensors").write_bytes(good)
    (copy / "tokenizer.json").write_text("{}")
    refused(copy, "policy.path", "tokenizer")
    (copy / "config.json").write_text("{")
    refused(copy, "policy.path")


def test_a_damaged_adapter(policy_dir, adapter_dir, tmp_path):
    folder = shutil.copytree(adapter_dir, tmp_path / "adapter")
    (folder / "adapter_model.safetensors").write_bytes(b"nothing")
    refused(policy_dir(), "policy.adapter.path", policy__adapter__path=str(folder))


def test_weights_of_another_model(copy, policy_dir):
    shutil.copy(policy_dir(kind="llama") / "model.safetensors", copy / "model.safetensors")
    refused(copy, "policy.path", "lacks weights")


def test_no_tokenizer(copy):
    for file in copy.glob("tokenizer*"):
        file.unlink()
    refused(copy, "policy.path", "tokenizer")


def test_an_adapter_of_another_model(policy_dir, adapter_dir):
    refused(policy_dir(kind="gpt2"), "policy.adapter.path", policy__adapter__path=str(adapter_dir))
    refused(policy_dir(hidden=32), "policy.adapter.path", policy__adapter__path=str(adapter_dir))


def test_layers_that_the_model_does_not_have(policy_dir):
    refused(
        policy_dir(), "policy.adapter.target_modules", policy__adapter__r=2, policy__adapter__target_modules=["q_proj"]
    )


def test_encoder_decoders(encoder_decoder, policy_dir):
    refused(encoder_decoder, "policy.path", "encoder-decoder")
    refused(policy_dir(), "reference.path", "encoder-decoder", reference__path=str(encoder_decoder))
    refused(policy_dir(), "value.path", "encoder-decoder", value__path=str(encoder_decoder))


@pytest.mark.parametrize("key", ["reference.path", "value.path"])
def test_a_smaller_vocabulary(policy_dir, tmp_path, key):
    small = save_policy(tmp_path, make_tokenizer(vocabulary=280))
    refused(policy_dir(), key, "vocabulary", **{key.replace(".", "__"): str(small)})


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


def test_a_critic_may_start_from_another_model(policy_dir, reward_dir):
    """From a reward model, say; but not from weights that are not its own."""
    from safetensors.torch import load_file

    from apa_cli.models.value import SeparateValue

    value = load_models(make_config(policy_dir(), value__path=str(reward_dir)), CPU).value
    assert isinstance(value, SeparateValue)
    saved = load_file(reward_dir / "model.safetensors")
    assert torch.equal(value.trunk.state_dict()["embed_in.weight"], saved["gpt_neox.embed_in.weight"])


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


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what happens without a CUDA device, and there is one")
def test_cuda_where_there_is_none():
    with pytest.raises(UserError, match=r"^device: cuda asked for"):
        select_runtime("cuda", "fp32")
    assert select_runtime("auto", "bf16").device.type == "cpu"
