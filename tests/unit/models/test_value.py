"""The critic: its values stand where the tokens are predicted, and it starts from nothing."""

import pytest
import torch
from tiny_models import CPU, make_config, make_rollout, uneven_batch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, OPTConfig, OPTForCausalLM

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
def test_values_start_at_zero(policy_dir, critic):
    config = make_config(policy_dir(), value__kind=critic)
    models = load_models(config, CPU)
    assert (make_rollout(models, config, uneven_batch(models.policy)).values == 0).all()


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_hidden_states_narrower_than_the_model(tmp_path, plain_tokenizer, critic):
    """As facebook/opt-350m has them."""
    OPTForCausalLM(
        OPTConfig(
            vocab_size=300,
            hidden_size=16,
            ffn_dim=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            word_embed_proj_dim=8,
            max_position_embeddings=64,
            eos_token_id=0,
            do_layer_norm_before=False,
        )
    ).save_pretrained(tmp_path)
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
