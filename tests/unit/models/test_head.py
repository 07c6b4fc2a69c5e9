"""A model taken apart gives the log-probs and gradients of the model left whole."""

import pytest
import torch
from tiny_models import CPU, FAMILIES, make_config, make_rollout, make_tokenizer, uneven_batch
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    CohereConfig,
    GPTJConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    OPTConfig,
)

from apa_cli.algorithms import exact_kl, per_response, response_logprobs
from apa_cli.evaluation.respond import response_exact_kl
from apa_cli.models.device import Runtime
from apa_cli.models.policy import Policy
from apa_cli.models.roles import load_models

BF16 = Runtime(device=torch.device("cpu"), bf16=True)
SIZES = {"vocab_size": 300, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
LLAMA = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, **SIZES}
TINY = {"vocab_size": 300, "n_positions": 256, "n_embd": 16, "n_layer": 2, "n_head": 2, "rotary_dim": 4}
OPT = {**SIZES, "hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
OTHERS = {
    "cohere": CohereConfig(**LLAMA, initializer_range=0.2, logit_scale=0.3),
    "granite": GraniteConfig(**LLAMA, initializer_range=0.2, logits_scaling=3.0),
    "gptj, a head with bias": GPTJConfig(**TINY, initializer_range=0.2),
    "opt, projected": OPTConfig(**OPT, word_embed_proj_dim=8, init_std=0.3, do_layer_norm_before=False),
}


def saved(folder, model):
    model.save_pretrained(folder)
    make_tokenizer(pad=False).save_pretrained(folder)
    return folder


def whole_logprobs(policy, batch, temperature):
    """What the model's own forward says, every logit of it."""
    logits, hidden = policy.response_forward(batch)
    return response_logprobs(logits, batch[2], temperature=temperature), hidden


def compare(folder, temperature=0.7, runtime=CPU, tolerance=1e-5, **changes):
    """Log-probs, hidden states and gradients with and without the parts; returns the models."""
    config = make_config(folder, generation__temperature=temperature, **changes)
    torch.manual_seed(2)
    models = load_models(config, runtime)
    policy = models.policy
    if policy.is_peft:
        with torch.no_grad():  # a new adapter does nothing yet
            for p in policy.trainable_parameters():
                p.normal_(std=0.3)
    rollout = make_rollout(models, config, uneven_batch(policy))
    mask = rollout.response_mask
    upstream = torch.randn(mask.shape)
    found = []
    for forward in (policy.logprobs, lambda batch, temperature: whole_logprobs(policy, batch, temperature)):
        logprobs, hidden = forward(rollout.batch, temperature=temperature)
        # the critic's gradient comes through the hidden states too
        loss = torch.where(mask, logprobs * upstream, 0.0).sum() + hidden[mask].float().square().sum() / 100
        grads = torch.autograd.grad(loss, policy.trainable_parameters())
        found.append((logprobs[mask], hidden, grads))
    (logprobs, hidden, grads), (whole, whole_hidden, whole_grads) = found
    assert logprobs.dtype == torch.float32
    assert_close(logprobs, whole, rtol=0, atol=tolerance)
    assert torch.equal(hidden, whole_hidden)
    for got, expected in zip(grads, whole_grads, strict=True):
        assert expected.abs().sum() > 0
        assert (got - expected).abs().max() <= tolerance * (1 + expected.abs().max())
    return models


@pytest.mark.parametrize("kind", FAMILIES)
def test_families(policy_dir, kind):
    models = compare(policy_dir(kind=kind, pad=False))
    assert models.policy.parts is not None
    assert (models.policy.parts.head.softcap == 2.0) == (kind == "gemma2")


@pytest.mark.parametrize("kind", OTHERS)
def test_other_heads(tmp_path, kind):
    torch.manual_seed(0)
    models = compare(saved(tmp_path, AutoModelForCausalLM.from_config(OTHERS[kind])))
    head = models.policy.parts.head
    assert head.scale == pytest.approx({"cohere": 0.3, "granite": 1 / 3}.get(kind, 1.0))
    assert (head.module.bias is not None) == ("bias" in kind)


@pytest.mark.parametrize("modules", [None, ["lm_head"], ["lm_head", "query_key_value"]], ids=str)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_on_the_head_or_not(policy_dir, modules, checkpointing):
    models = compare(
        policy_dir(),
        policy__adapter__r=2,
        policy__adapter__target_modules=modules,
        policy__gradient_checkpointing=checkpointing,
    )
    assert models.policy.parts is not None
    assert (type(models.policy.parts.head.module) is torch.nn.Linear) == (modules is None)


@pytest.mark.parametrize(("adapter", "modules"), [(0, None), (2, None), (2, ["lm_head"])], ids=str)
def test_bf16(policy_dir, adapter, modules):
    changes = {"policy__adapter__r": adapter, "policy__adapter__target_modules": modules, "precision": "bf16"}
    compare(policy_dir(), runtime=BF16, tolerance=0.03, **changes)


def test_only_logits_that_count_are_computed(policy_dir, monkeypatch):
    """The model's own head is not called, and masked tokens cost nothing."""
    config = make_config(policy_dir(eos_logit=4.0))
    models = load_models(config, CPU)
    rollout = make_rollout(models, config, uneven_batch(models.policy))
    seen, calls, head = [], [], models.policy.parts.head
    head.module.register_forward_hook(lambda *_: calls.append(1))
    original = type(head).logprobs

    def noted(self, hidden, ids, **rest):
        seen.append(len(ids))
        return original(self, hidden, ids, **rest)

    monkeypatch.setattr(type(head), "logprobs", noted)
    logprobs, _ = models.policy.logprobs(rollout.batch, temperature=1.0)
    models.policy.hidden_states(rollout.batch)
    assert calls == []
    assert seen == [rollout.response_mask.sum()] and seen[0] < rollout.response_mask.numel()
    assert (logprobs[~rollout.response_mask] == 0).all()


CHANGES = {
    "times": lambda logits: logits * 1.5,
    "tanh": lambda logits: 30 * torch.tanh(logits / 30),
    "shifted": lambda logits: logits + torch.linspace(0, 1, logits.shape[-1]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_is_not_understood_stays_whole(policy_dir, monkeypatch, caplog, change):
    original = GPTNeoXForCausalLM.forward

    def changed(self, *args, **kwargs):
        output = original(self, *args, **kwargs)
        output.logits = CHANGES[change](output.logits)
        return output

    monkeypatch.setattr(GPTNeoXForCausalLM, "forward", changed)
    folder = policy_dir()
    with caplog.at_level("INFO", logger="apa_cli"):
        models = compare(folder)
    assert models.policy.parts is None
    assert [r.getMessage() for r in caplog.records if "called whole" in r.getMessage()]
    rollout = make_rollout(models, make_config(folder), uneven_batch(models.policy))
    mask = rollout.response_mask
    assert_close(rollout.rollout_logprobs[mask], rollout.reference_logprobs[mask], atol=1e-5, rtol=0)


def test_something_between_trunk_and_head_is_noticed():
    model = BertLMHeadModel(BertConfig(**LLAMA, is_decoder=True))
    policy = Policy(model.eval(), make_tokenizer(), CPU)
    assert policy.parts is None


def test_the_trial_draws_no_random_numbers(policy_dir):
    models = load_models(make_config(policy_dir()), CPU)
    before = torch.get_rng_state()
    Policy(models.policy.model, models.policy.tokenizer, CPU)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("start", ["full", "lora", "trained", "head", "whole"])
def test_exact_kl_is_that_of_all_logits(policy_dir, adapter_dir, monkeypatch, start):
    monkeypatch.setattr("apa_cli.evaluation.respond.CHUNK", 5)
    changes = {
        "full": {},
        "lora": {"policy__adapter__r": 2},
        "trained": {"policy__adapter__path": str(adapter_dir)},
        "head": {"policy__adapter__r": 2, "policy__adapter__target_modules": ["lm_head"]},
        "whole": {},
    }[start]
    config = make_config(policy_dir(), **changes)
    models = load_models(config, CPU)
    if start == "whole":
        models.policy.parts = None
    with torch.no_grad():
        for p in models.policy.trainable_parameters():
            p.add_(torch.randn_like(p), alpha=0.05)
    rollout = make_rollout(models, config, uneven_batch(models.policy))
    actual = response_exact_kl(rollout, models.policy, models.reference, temperature=0.9, token_budget=64)
    with torch.no_grad():
        ours = models.policy.response_forward(rollout.batch)[0]
        with models.reference.active() as reference:
            theirs = reference.response_forward(rollout.batch)[0]
    expected = per_response(exact_kl(ours, theirs, temperature=0.9), rollout.response_mask)
    assert expected.min() > 1e-3
    assert_close(actual, expected, rtol=1e-4, atol=1e-5)
