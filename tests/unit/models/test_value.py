"""The critic: its values stand where the tokens are predicted, and it starts from nothing."""

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny_models import (
    CPU,
    iterate,
    make_config,
    make_rollout,
    make_stream,
    save_encoder_reward,
    save_reward,
    uneven_batch,
)
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, OPTConfig, OPTForCausalLM

from apa_cli.checkpoints.export import export_final, save_policy
from apa_cli.errors import UserError
from apa_cli.models.adapters import POLICY_ADAPTER, REFERENCE_ADAPTER, VALUE_ADAPTER
from apa_cli.models.roles import load_models
from apa_cli.training.state import initial_state


@pytest.mark.parametrize("kind", ["gpt_neox", "gpt2", "gemma2", "bloom"])
@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_values_are_those_of_each_row_alone(policy_dir, kind, critic):
    """V_t = w · h + b with h the last hidden state at the position that predicts token t."""
    folder = policy_dir(kind=kind, pad=False)
    config = make_config(folder, value__kind=critic)
    models = load_models(config, CPU)
    torch.manual_seed(3)
    torch.nn.init.normal_(models.value.head.linear.weight)
    torch.nn.init.normal_(models.value.head.linear.bias)
    rollout = make_rollout(models, config, uneven_batch(models.policy))
    trunk = AutoModelForCausalLM.from_pretrained(folder).eval().base_model
    weight, bias = models.value.head.linear.weight[0], models.value.head.linear.bias
    for row in range(len(rollout.response_ids)):
        prompt = rollout.prompt_ids[row][rollout.prompt_mask[row]]
        ids = rollout.response_ids[row][rollout.response_mask[row]]
        with torch.no_grad():
            hidden = trunk(torch.cat([prompt, ids])[None]).last_hidden_state[0]
            expected = torch.stack([hidden[len(prompt) - 1 + t] @ weight + bias[0] for t in range(len(ids))])
        assert_close(rollout.values[row][rollout.response_mask[row]], expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_values_start_at_zero(policy_dir, critic):
    config = make_config(policy_dir(), value__kind=critic)
    models = load_models(config, CPU)
    assert (make_rollout(models, config, uneven_batch(models.policy)).values == 0).all()


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_hidden_states_narrower_than_the_model(tmp_path, plain_tokenizer, critic):
    """As facebook/opt-350m has them."""
    sizes = {"vocab_size": 300, "hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    narrow = {"word_embed_proj_dim": 8, "max_position_embeddings": 64, "eos_token_id": 0, "do_layer_norm_before": False}
    OPTForCausalLM(OPTConfig(**sizes, **narrow)).save_pretrained(tmp_path)
    plain_tokenizer.save_pretrained(tmp_path)
    config = make_config(tmp_path, value__kind=critic)
    models = load_models(config, CPU)
    assert models.value.head.linear.in_features == 8
    make_rollout(models, config, uneven_batch(models.policy))


def test_the_critic_has_weights_of_its_own(policy_dir):
    models = load_models(make_config(policy_dir()), CPU)
    mine = {p.data_ptr() for p in models.value.parameters()}
    assert mine.isdisjoint(p.data_ptr() for p in models.policy.model.parameters())
    with models.reference.active() as reference:
        assert mine.isdisjoint(p.data_ptr() for p in reference.model.parameters())


def adapter_config(folder, adapter_dir=None, **changes):
    start = {"policy__adapter__path": str(adapter_dir)} if adapter_dir else {"policy__adapter__r": 2}
    return make_config(folder, value__kind="adapter", **start, **changes)


def adapter_names(model):
    """Each adapter's parameters, by the name that stands last but one in theirs."""
    named = [(name.split("."), p) for name, p in model.named_parameters() if "lora_" in name]
    return {adapter: {id(p) for parts, p in named if parts[-2] == adapter} for adapter in {n[-2] for n, _ in named}}


def shaken(parameters):
    with torch.no_grad():
        for p in parameters:
            p.normal_(std=0.3)


@pytest.mark.parametrize("start", ["lora", "trained"])
def test_each_role_trains_its_own_adapter(policy_dir, adapter_dir, start):
    models = load_models(adapter_config(policy_dir(), adapter_dir if start == "trained" else None), CPU)
    model = models.policy.model
    by_name = adapter_names(model)
    expected = {POLICY_ADAPTER, VALUE_ADAPTER} | ({REFERENCE_ADAPTER} if start == "trained" else set())
    assert by_name.keys() == expected
    rollout = make_rollout(models, adapter_config(policy_dir()), uneven_batch(models.policy))
    for _ in range(2):  # before and after passes of every role
        assert {id(p) for p in models.policy.trainable_parameters()} == by_name[POLICY_ADAPTER]
        assert {id(p) for p in models.value.parameters()} == by_name[VALUE_ADAPTER] | {
            id(p) for p in models.value.head.parameters()
        }
        flagged = {id(p) for p in model.parameters() if p.requires_grad}
        assert flagged == by_name[POLICY_ADAPTER] | by_name[VALUE_ADAPTER]
        assert model.active_adapter == POLICY_ADAPTER
        models.reference.logprobs(*rollout.batch, temperature=1.0)
        models.value(*rollout.batch)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_never_cross_adapters(policy_dir, checkpointing):
    """Both graphs alive, the critic's adapter set last: each backward still goes through what its forward used."""
    config = adapter_config(policy_dir(), policy__gradient_checkpointing=checkpointing)
    models = load_models(config, CPU)
    torch.manual_seed(4)
    policy, critic = models.policy.trainable_parameters(), list(models.value.parameters())
    shaken([*policy, *critic])
    rollout = make_rollout(models, config, uneven_batch(models.policy))
    with models.policy.training():
        logprobs, _ = models.policy.logprobs(*rollout.batch, temperature=1.0)
        values = models.value(*rollout.batch)
        mask = rollout.response_mask
        values[mask].square().sum().backward()
        assert all(p.grad is None for p in policy)
        value_grads = [p.grad.clone() for p in critic]
        for p in critic:
            p.grad = None
        logprobs[mask].sum().backward()
        assert all(p.grad is None for p in critic)
        policy_grads = [p.grad.clone() for p in policy]
    # the same numbers from two plain PEFT models, one adapter each
    for parameters, grads, hidden_of in (
        (policy, policy_grads, lambda model, batch: model.policy.logprobs(*batch, temperature=1.0)[0][mask].sum()),
        (critic[:-2], value_grads[:-2], None),
    ):
        assert all(g.abs().sum() > 0 for g in grads)
        alone = load_models(make_config(policy_dir(), policy__adapter__r=2, value__kind="shared"), CPU)
        own = alone.policy.trainable_parameters()
        with torch.no_grad():
            for mine, theirs in zip(own, parameters, strict=True):
                mine.copy_(theirs)
        if hidden_of is not None:
            loss = hidden_of(alone, rollout.batch)
        else:
            alone.value.head.load_state_dict(models.value.head.state_dict())
            hidden = alone.policy.response_forward(*rollout.batch)[1]
            loss = alone.value(hidden=hidden)[mask].square().sum()
        assert_close(torch.autograd.grad(loss, own), tuple(grads), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("start", ["lora", "trained"])
def test_training_leaves_base_and_reference_alone(policy_dir, adapter_dir, start):
    config = adapter_config(
        policy_dir(), adapter_dir if start == "trained" else None, optimizer__value_learning_rate=0.05
    )
    models = load_models(config, CPU)
    rollout = make_rollout(models, config, uneven_batch(models.policy))
    before = {name: p.detach().clone() for name, p in models.policy.model.named_parameters()}
    reference = models.reference.logprobs(*rollout.batch, temperature=1.0)
    state = initial_state(config, models, make_stream(models, config))
    for _ in range(2):
        iterate(config, models, state)
    moved = {name for name, p in models.policy.model.named_parameters() if not torch.equal(p, before[name])}
    assert all("lora_" in name and REFERENCE_ADAPTER not in name for name in moved)
    assert {POLICY_ADAPTER, VALUE_ADAPTER} == {name.split(".")[-2] for name in moved}
    assert torch.equal(models.reference.logprobs(*rollout.batch, temperature=1.0), reference)


def test_a_new_critic_starts_as_the_base_and_a_trained_start_is_its_start_too(policy_dir, adapter_dir):
    plain = AutoModelForCausalLM.from_pretrained(policy_dir()).eval()
    for start, base in ((None, plain.base_model), (adapter_dir, None)):
        models = load_models(adapter_config(policy_dir(), start), CPU)
        torch.nn.init.normal_(models.value.head.linear.weight)
        rollout = make_rollout(models, adapter_config(policy_dir()), uneven_batch(models.policy))
        base = base or PeftModel.from_pretrained(plain, start).eval().get_base_model().base_model
        counted = rollout.response_mask[1]
        prompt = rollout.prompt_ids[1][rollout.prompt_mask[1]]
        with torch.no_grad():
            hidden = base(torch.cat([prompt, rollout.response_ids[1][counted]])[None]).last_hidden_state[0]
            expected = hidden[len(prompt) - 1 : -1] @ models.value.head.linear.weight[0]
        assert_close(rollout.values[1][counted], expected, atol=1e-4, rtol=1e-5)


def test_saved_as_a_peft_folder_and_apart_from_the_policy(policy_dir, tmp_path):
    models = load_models(adapter_config(policy_dir()), CPU)
    shaken([*models.policy.trainable_parameters(), *models.value.parameters()])
    save_policy(models.policy, tmp_path / "policy")
    models.value.save(tmp_path / "value")
    files = {"adapter_config.json", "adapter_model.safetensors", "value_head.safetensors"}
    assert {f.name for f in (tmp_path / "value").iterdir()} == files
    assert not any(f.is_dir() for f in (tmp_path / "policy").iterdir())
    policy, value = (load_file(tmp_path / role / "adapter_model.safetensors") for role in ("policy", "value"))
    assert policy.keys() == value.keys()
    assert len(policy) == len(models.policy.trainable_parameters())
    assert not any(VALUE_ADAPTER in name for name in policy)
    ids = torch.tensor([[5, 6, 7, 8]])
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(policy_dir()), tmp_path / "value").eval()
    with torch.no_grad(), models.policy.adapters.use(VALUE_ADAPTER):
        assert_close(plain(ids).logits, models.policy.model(ids).logits)
        other = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(policy_dir()), tmp_path / "policy")
        assert (plain(ids).logits - other.eval()(ids).logits).abs().max() > 0.1


def test_it_may_start_from_the_reward_model(policy_dir, reward_dir):
    """At a response's last token the first value is the reward model's own score of what came before it."""
    config = make_config(policy_dir(), value__path=str(reward_dir))
    models = load_models(config, CPU)
    rollout = make_rollout(models, config, uneven_batch(models.policy))
    judge = AutoModelForSequenceClassification.from_pretrained(reward_dir).eval()
    for row, (prompt, response) in enumerate(
        zip(rollout.prompt_token_ids(), rollout.response_token_ids(), strict=True)
    ):
        with torch.no_grad():
            # V_t is made before token t is known
            expected = judge(torch.tensor([[*prompt, *response[:-1]]])).logits[0, 0]
        last = int(rollout.response_mask[row].sum()) - 1
        assert_close(rollout.values[row, last], expected, atol=1e-4, rtol=1e-4)
    assert all(p.requires_grad for p in models.value.parameters())


def test_of_several_outputs_only_the_trunk_is_taken(policy_dir, plain_tokenizer, tmp_path):
    folder = save_reward(tmp_path, plain_tokenizer, labels=2)
    models = load_models(make_config(policy_dir(), value__path=str(folder)), CPU)
    judge = AutoModelForSequenceClassification.from_pretrained(folder)
    ours = dict(models.value.trunk.named_parameters())
    assert all(torch.equal(ours[name], p) for name, p in judge.base_model.named_parameters())
    assert not models.value.head.linear.weight.any()


def test_an_encoder_cannot_be_the_critic(policy_dir, plain_tokenizer, tmp_path):
    folder = save_encoder_reward(tmp_path, plain_tokenizer)
    with pytest.raises(UserError, match=r"^value\.path: .* is no decoder-only classifier"):
        load_models(make_config(policy_dir(), value__path=str(folder)), CPU)


def test_a_critic_that_was_kept_starts_the_next_run(policy_dir, tmp_path):
    config = make_config(policy_dir())
    models = load_models(config, CPU)
    torch.manual_seed(5)
    shaken([*models.value.parameters()])
    final = export_final(models.policy, tmp_path / "final", config, {}, {}, models.value)
    AutoModelForCausalLM.from_pretrained(final)
    again = load_models(make_config(str(final), value__path=str(final / "value")), CPU)
    ours, theirs = models.value.state_dict(), again.value.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
