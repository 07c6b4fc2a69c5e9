"""What an adapter brings with it: dropout, a start that changed its base, and which layers a new one is put on."""

import copy
import json
import shutil

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel
from tiny_models import CPU, iterate, make_config, make_rollout, make_stream, make_tokenizer, uneven_batch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, Lfm2Config, MixtralConfig, Olmo2Config, Phi3Config, Qwen3MoeConfig

from apa_cli.checkpoints.export import save_policy
from apa_cli.errors import UserError
from apa_cli.models.roles import load_models
from apa_cli.training.state import initial_state

LAYERS = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj", "down_proj"]}
EMBEDDED = [*LAYERS["target_modules"], "embed_tokens"]
WITH_DROPOUT = {
    "lora": LoraConfig(r=2, lora_dropout=0.5, modules_to_save=["norm"], **LAYERS),
    "dora": LoraConfig(r=2, lora_dropout=0.5, use_dora=True, **LAYERS),
    "hira": peft.HiraConfig(r=2, hira_dropout=0.5, **LAYERS),
    "boft": peft.BOFTConfig(boft_block_size=4, boft_dropout=0.5, **LAYERS),
    "lokr": peft.LoKrConfig(r=2, rank_dropout=0.5, module_dropout=0.5, **LAYERS),
}
SMALL = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 2, "num_key_value_heads": 1, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
NEW = {
    "phi3": (Phi3Config(**SMALL), {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}),
    "olmo2": (Olmo2Config(**SMALL, tie_word_embeddings=True), ATTENTION | {"gate_proj", "up_proj", "down_proj"}),
    "lfm2": (
        Lfm2Config(**SMALL, layer_types=["full_attention"] * 2),
        {"q_proj", "k_proj", "v_proj", "out_proj", "w1", "w2", "w3"},
    ),
    "qwen3_moe": (
        Qwen3MoeConfig(**SMALL, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=8),
        ATTENTION,
    ),
    "mixtral": (MixtralConfig(**SMALL, num_local_experts=4), {"q_proj", "v_proj"}),
}


def trained(settings, base, folder):
    torch.manual_seed(1)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += 0.05 * torch.randn_like(weight)
    model.save_pretrained(folder)
    return folder


def training_passes(models, rollout):
    """Log-probs and values at rest, and twice in training mode."""
    torch.nn.init.ones_(models.value.head.linear.weight)

    def passes():
        return models.policy.logprobs(rollout.batch, temperature=1.0)[0], models.value(rollout.batch)

    with torch.no_grad():
        resting = passes()
        with models.policy.training():
            models.value.train()
            return [resting, passes(), passes()]


@pytest.mark.parametrize("kind", WITH_DROPOUT)
def test_dropout_of_a_trained_adapter_is_what_the_run_says(policy_dir, tmp_path, kind):
    base = policy_dir(kind="llama")
    folder = trained(WITH_DROPOUT[kind], base, tmp_path)
    settings = {"policy__adapter__path": str(folder), "value__kind": "adapter"}
    config = make_config(base, **settings)
    models = load_models(config, CPU)
    rollout = make_rollout(models, config, uneven_batch(models.policy))
    resting, first, second = training_passes(models, rollout)
    for i in range(2):
        assert torch.equal(resting[i], first[i]) and torch.equal(resting[i], second[i])
    wanted = make_config(base, **settings, policy__adapter__dropout=0.3)
    if kind == "lokr":
        with pytest.raises(UserError, match=r"^policy.adapter.dropout: 0.3, but a LOKR adapter"):
            load_models(wanted, CPU)
        return
    models = load_models(wanted, CPU)
    resting, first, second = training_passes(models, rollout)
    for i in range(2):
        assert not torch.allclose(first[i], second[i])
    with models.policy.training():
        reference = models.reference.logprobs(rollout.batch, temperature=1.0)
    assert_close(reference, rollout.reference_logprobs)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda", "kasa"])
def test_an_adapter_that_changed_its_base_is_refused(policy_dir, tmp_path, start):
    base = policy_dir(kind="llama")
    own = {"kasa": {"kasa_config": peft.KasaConfig()}, "corda": {}}.get(start, {"init_lora_weights": start})
    folder = trained(LoraConfig(r=2, **LAYERS, **own), base, tmp_path)
    if start == "corda":  # which starts from activations
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"init_lora_weights": "corda"}))
    with pytest.raises(UserError, match=r"^policy.adapter.path: .*changes the base's weights; convert"):
        load_models(make_config(base, policy__adapter__path=str(folder)), CPU)


@pytest.mark.parametrize("kind", NEW)
def test_lora_finds_its_layers(tmp_path, plain_tokenizer, kind):
    """It trains, its reference stays the base, and what is saved loads again in plain PEFT."""
    settings, layers = NEW[kind]
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(settings).save_pretrained(tmp_path / "base")
    plain_tokenizer.save_pretrained(tmp_path / "base")
    config = make_config(tmp_path / "base", policy__adapter__r=2, value__kind="adapter", optimizer__learning_rate=0.05)
    models = load_models(config, CPU)
    adapted = [name for name, layer in models.policy.model.named_modules() if hasattr(layer, "lora_A")]
    assert {name.rpartition(".")[2] for name in adapted} == layers
    iterate(config, models, initial_state(config, models, make_stream(models, config)))
    save_policy(models.policy, tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    ids = torch.arange(1, 17).view(2, 8)
    with torch.no_grad():
        start = base(ids).logits
        with models.reference.active() as reference:
            assert_close(reference.model(ids).logits, start)
        again = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(ids).logits
    assert_close(models.policy.model(ids).logits, again)
    assert (again - start).abs().max() > 1e-3


@pytest.mark.parametrize("how", [{}, {"modules_to_save": ["embed_tokens", "lm_head"]}, {"target_modules": EMBEDDED}])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_an_adapter_of_a_larger_vocabulary(policy_dir, plain_tokenizer, tmp_path, kind, how):
    """The base takes its rows, policy and reference are the model that was saved, and so is what the run exports."""
    torch.manual_seed(3)
    wide = AutoModelForCausalLM.from_pretrained(policy_dir(kind=kind))
    wide.resize_token_embeddings(302, mean_resizing=False)
    settings = LoraConfig(**{"r": 2, **LAYERS, **how})
    model = peft.get_peft_model(wide, settings).eval()
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += 0.05 * torch.randn_like(weight)
    model.save_pretrained(tmp_path / "adapter")
    tokenizer = copy.deepcopy(plain_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
    tokenizer.chat_template = "{{ messages[0].content }}"
    tokenizer.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[1, 2, 300, 301, 5]])
    config = make_config(policy_dir(kind=kind), policy__adapter__path=str(tmp_path / "adapter"), value__kind="adapter")
    if kind == "qwen2" and "target_modules" in how:  # PEFT saves no rows of a head that is not tied
        with pytest.raises(UserError, match="does not hold the rows of lm_head; train or save it with modules_to_save"):
            load_models(config, CPU)
        return
    models = load_models(config, CPU)
    assert models.policy.tokenizer.chat_template == tokenizer.chat_template
    assert torch.equal(models.policy.model(ids).logits, model(ids).logits)
    with models.reference.active() as reference:
        assert torch.equal(reference.model(ids).logits, model(ids).logits)
    save_policy(models.policy, tmp_path / "final")
    again = AutoModelForCausalLM.from_pretrained(policy_dir(kind=kind))
    again.resize_token_embeddings(302, mean_resizing=False)
    again = PeftModel.from_pretrained(again, tmp_path / "final").eval()
    assert_close(again(ids).logits, model(ids).logits)


def test_an_adapters_tokenizer_must_fit(policy_dir, adapter_dir, plain_tokenizer, tmp_path):
    folder = shutil.copytree(adapter_dir, tmp_path / "adapter")
    config = make_config(policy_dir(), policy__adapter__path=str(folder))
    larger = copy.deepcopy(plain_tokenizer)
    larger.add_tokens(["<added>"])
    for tokenizer, words in ((larger, "brings no rows"), (make_tokenizer(["zz yy xx ww"] * 9), "ids differ")):
        tokenizer.save_pretrained(folder)
        with pytest.raises(UserError, match=rf"^policy.adapter.path: .*{words}"):
            load_models(config, CPU)


def test_an_adapter_of_another_base_of_the_same_shape(policy_dir, adapter_dir, tmp_path, caplog):
    def load(base, folder):
        load_models(make_config(base, policy__adapter__path=str(folder)), CPU)

    with pytest.raises(UserError, match=r"^policy.adapter.path: .* was trained on .*, not on "):
        load(policy_dir(seed=9), adapter_dir)
    load(shutil.copytree(policy_dir(), tmp_path / "a copy"), adapter_dir)
    folder = shutil.copytree(adapter_dir, tmp_path / "adapter")
    file = folder / "adapter_config.json"
    for named, here in (("org/other", False), (f"/gone/{policy_dir().name}", True), (None, True)):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": named}))
        caplog.clear()
        if here:
            load(policy_dir(), folder)
            assert ("cannot be compared" in caplog.text) is (named is not None)
        else:
            with pytest.raises(UserError, match="trained on org/other"):
                load(policy_dir(), folder)
