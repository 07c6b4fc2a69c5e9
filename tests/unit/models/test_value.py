"""The critic: its values stand where the tokens are predicted, and it starts from nothing."""

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny_models import CPU, make_config, make_rollout, save_encoder_reward, save_reward, uneven_batch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, OPTConfig, OPTForCausalLM

from apa_cli.checkpoints.export import export_final, save_policy
from apa_cli.errors import UserError
from apa_cli.models.adapters import VALUE_ADAPTER
from apa_cli.models.roles import load_models


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


def adapter_config(folder, adapter_dir=None, **changes):
    start = {"policy__adapter__path": str(adapter_dir)} if adapter_dir else {"policy__adapter__r": 2}
    return make_config(folder, value__kind="adapter", **start, **changes)


def shaken(parameters):
    with torch.no_grad():
        for p in parameters:
            p.normal_(std=0.3)


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
