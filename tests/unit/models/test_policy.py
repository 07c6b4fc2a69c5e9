"""The policy's log-probs are those of the plain model on one unpadded sequence; its reference is what it started as."""

import json
import math

import pytest
import torch
from tiny_models import CPU, FAMILIES, iterate, make_config, make_rollout, make_stream, uneven_batch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from apa_cli.models.adapters import REFERENCE_ADAPTER
from apa_cli.models.device import Runtime
from apa_cli.models.roles import load_models
from apa_cli.rollouts.generation import sample
from apa_cli.training.state import initial_state

BF16 = Runtime(device=torch.device("cpu"), bf16=True)


@torch.no_grad()
def plain_logprobs(model, rollout, row, temperature):
    """log π of one row's counted tokens: no padding, no batch, one call of the model as transformers loads it."""
    prompt = rollout.prompt_ids[row][rollout.prompt_mask[row]]
    response = rollout.response_ids[row][rollout.response_mask[row]]
    logits = model(input_ids=torch.cat([prompt, response])[None]).logits[0].float() / temperature
    return torch.stack([logits[len(prompt) - 1 + t].log_softmax(-1)[token] for t, token in enumerate(response)])


@pytest.mark.parametrize(("kind", "attention"), [*((kind, None) for kind in FAMILIES), ("llama", "eager")])
def test_padded_batch_equals_each_row_alone(policy_dir, kind, attention):
    folder = policy_dir(kind=kind, pad=False)
    config = make_config(folder, generation__temperature=0.7, policy__attn_implementation=attention)
    models = load_models(config, CPU)
    rollout = make_rollout(models, config, uneven_batch(models.policy))
    logprobs, _ = models.policy.logprobs(rollout.batch, temperature=0.7)
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    for row in range(len(rollout.response_ids)):
        expected = plain_logprobs(plain, rollout, row, 0.7)
        counted = rollout.response_mask[row]
        for got in (rollout.rollout_logprobs, logprobs, rollout.reference_logprobs):
            # log-probs of about 6 nats, each a sum over 300 words in float32: a few roundings of 5e-7
            assert_close(got[row][counted], expected, atol=5e-6, rtol=0)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["gpt_neox", "gpt2", "opt"])
@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_dropout_of_the_model_is_off_in_training_too(policy_dir, kind, critic, checkpointing):
    folder = policy_dir(kind=kind, dropout=0.5, pad=False)
    saved = json.loads((folder / "config.json").read_text())
    assert any(value == 0.5 for value in saved.values())
    config = make_config(folder, value__kind=critic, policy__gradient_checkpointing=checkpointing)
    models = load_models(config, CPU)
    models.policy.model.base_model.written_in_code = torch.nn.Dropout(0.5)  # as no configuration says
    rollout = sample(models.policy, uneven_batch(models.policy), config.generation)
    with torch.no_grad():
        resting, hidden = models.policy.logprobs(rollout.batch, temperature=1.0)
        with models.policy.training():
            assert any(module.training for module in models.policy.model.modules()) is checkpointing
            assert not models.policy.model.base_model.written_in_code.training
            active, active_hidden = models.policy.logprobs(rollout.batch, temperature=1.0)
        assert not models.policy.model.training
        assert torch.equal(resting, active)
        assert torch.equal(hidden, active_hidden)
        if critic == "separate":
            torch.nn.init.ones_(models.value.head.linear.weight)
            before = models.value(rollout.batch)
            assert torch.equal(before, models.value.train()(rollout.batch))


def test_dropout_inside_a_nested_configuration_is_found(tmp_path):
    from transformers import LlamaConfig, LlavaConfig

    from apa_cli.models.loading import load_config

    LlavaConfig(text_config=LlamaConfig(attention_dropout=0.25).to_dict()).save_pretrained(tmp_path)
    assert load_config("policy.path", str(tmp_path)).text_config.attention_dropout == 0.0


@pytest.mark.parametrize("start", ["lora", "trained"])
def test_a_reference_pass_leaves_what_is_trained_as_it_was(policy_dir, adapter_dir, start):
    adapter = {"policy__adapter__path": str(adapter_dir)} if start == "trained" else {"policy__adapter__r": 2}
    config = make_config(policy_dir(), **adapter)
    models = load_models(config, CPU)
    model = models.policy.model
    rollout = sample(models.policy, uneven_batch(models.policy), config.generation)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    assert any(flags.values())
    assert all(flag == ("lora_" in name and REFERENCE_ADAPTER not in name) for name, flag in flags.items())
    before = models.policy.logprobs(rollout.batch, temperature=1.0)[0]
    models.reference.logprobs(rollout.batch, temperature=1.0)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert model.active_adapter == "default"
    assert torch.equal(models.policy.logprobs(rollout.batch, temperature=1.0)[0], before)

    with pytest.raises(KeyError), models.reference.active():
        raise KeyError
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert model.active_adapter == "default"


def test_generation_defaults_of_the_model_never_reach_a_rollout(policy_dir):
    """The folder's settings make sampling all but greedy; the same seed draws the same ids as without them."""
    own = {"do_sample": True, "top_k": 1, "repetition_penalty": 1.3, "temperature": 0.1, "min_p": 0.9}
    own["eos_token_id"] = 0
    folder = policy_dir(generation=own)
    config = make_config(folder, generation__max_new_tokens=3)
    models = load_models(config, CPU)
    batch = uneven_batch(models.policy, 8)
    plain = load_models(make_config(policy_dir(), generation__max_new_tokens=3), CPU)
    torch.manual_seed(2)
    rollout = sample(models.policy, batch, config.generation)
    torch.manual_seed(2)
    assert torch.equal(rollout.response_ids, sample(plain.policy, batch, config.generation).response_ids)


def test_a_frozen_reference_ends_responses_as_the_policy_does(policy_dir):
    models = load_models(make_config(policy_dir(), generation__stop_tokens=["a"]), CPU)
    assert models.reference.frozen.eos_token_ids == models.policy.eos_token_ids
    assert len(models.policy.eos_token_ids) > len(load_models(make_config(policy_dir()), CPU).policy.eos_token_ids)


def test_a_frozen_reference_of_its_own(policy_dir, tmp_path):
    other = policy_dir(seed=9)
    models = load_models(make_config(policy_dir(), reference__path=str(other), policy__adapter__r=2), CPU)
    config = make_config(policy_dir())
    rollout = make_rollout(models, config, uneven_batch(models.policy))
    plain = AutoModelForCausalLM.from_pretrained(other).eval()
    expected = plain_logprobs(plain, rollout, 1, 1.0)
    assert_close(rollout.reference_logprobs[1][rollout.response_mask[1]], expected, atol=5e-6, rtol=0)
    with models.reference.active() as reference:
        assert not any(p.requires_grad for p in reference.model.parameters())


def test_bf16_keeps_trained_weights_in_float32(policy_dir):
    full = load_models(make_config(policy_dir(), precision="bf16"), BF16)
    assert {p.dtype for p in [*full.policy.trainable_parameters(), *full.value.parameters()]} == {torch.float32}
    lora = load_models(make_config(policy_dir(), precision="bf16", policy__adapter__r=2), BF16)
    assert {p.dtype for p in lora.policy.trainable_parameters()} == {torch.float32}
    assert {p.dtype for p in lora.policy.model.parameters() if not p.requires_grad} == {torch.bfloat16}
    wide = load_models(make_config(policy_dir(), precision="bf16", policy__dtype="fp32", policy__adapter__r=2), BF16)
    assert {p.dtype for p in wide.policy.model.parameters()} == {torch.float32}


def test_bf16_steps_of_1e_6_change_every_trained_weight(policy_dir):
    """In bf16 weights of about 0.2 an AdamW step of 1e-6 would vanish."""
    config = make_config(policy_dir(), precision="bf16", optimizer__learning_rate=1e-6)
    models = load_models(config, BF16)
    start = {name: p.detach().clone() for name, p in models.policy.model.named_parameters()}
    state = initial_state(config, models, make_stream(models, config))
    iterate(config, models, state)
    heads = ("embed_out.weight", "dense_h_to_4h.weight")
    for name, p in models.policy.model.named_parameters():
        if name.endswith(heads):
            assert (p != start[name]).float().mean() > 0.9, name
            assert (p - start[name]).abs().max() < 1e-4, name


@pytest.mark.parametrize(
    ("critic", "start"),
    [("separate", "full"), ("shared", "full"), ("separate", "lora"), ("adapter", "lora"), ("adapter", "trained")],
)
def test_all_in_bf16(policy_dir, adapter_dir, critic, start):
    """Weights and states in bf16; log-probs, values and losses in float32; KL starts at exactly 0."""
    adapter = {"full": {}, "lora": {"policy__adapter__r": 2}, "trained": {"policy__adapter__path": str(adapter_dir)}}
    config = make_config(policy_dir(), precision="bf16", policy__dtype="bf16", value__kind=critic, **adapter[start])
    models = load_models(config, BF16)
    head = list(models.value.head.parameters())
    weights = [*models.policy.model.parameters(), *models.value.parameters()]
    assert {p.dtype for p in weights if not any(p is h for h in head)} == {torch.bfloat16}
    rollout = make_rollout(models, config, uneven_batch(models.policy))
    with torch.no_grad():
        policy = models.policy.logprobs(rollout.batch, temperature=1.0)[0]
    assert torch.equal(policy, models.reference.logprobs(rollout.batch, temperature=1.0))
    assert rollout.rollout_logprobs.dtype == rollout.reference_logprobs.dtype == rollout.values.dtype == torch.float32
    with models.policy.training():
        logprobs, hidden = models.policy.logprobs(rollout.batch, temperature=1.0)
    values = models.value(rollout.batch, hidden=hidden)
    assert logprobs.dtype == values.dtype == torch.float32
    state = initial_state(config, models, make_stream(models, config))
    stats = iterate(config, models, state)
    assert all(map(math.isfinite, (stats["objective/policy_loss"], stats["objective/value_loss"])))
    moments = {s["exp_avg"].dtype for w, s in state.optimizer.state.items() if not any(w is h for h in head)}
    assert moments == {torch.bfloat16}
