"""A run that goes on from a checkpoint is, bit for bit, the run that never stopped."""

import random

import numpy as np
import pytest
import torch
from tiny_models import CPU, eight_bit, iterate, make_config, make_store, make_stream

from apa_cli.models.device import Runtime
from apa_cli.models.roles import load_models
from apa_cli.training.state import initial_state
from apa_cli.training.state_files import Snapshot, load_training_state, save_training_state

BF16 = Runtime(device=torch.device("cpu"), bf16=True)
STARTS = {"full": {}, "lora": {"policy__adapter__r": 2}, "trained": None}
OBJECTIVES = {
    "apa": {"objective__name": "apa"},
    "awr": {"objective__name": "awr"},
    "apa, steered": {"objective__name": "apa", "objective__kl_target": 0.5},
    "awr, steered": {"objective__name": "awr", "objective__kl_target": 0.5, "objective__kl_lambda": 2.0},
    "ppo": {"objective__name": "ppo", "objective__kl_target": 0.5, "objective__kl_horizon": 100},
}
GROUP = {"advantage__name": "group", "rollout__responses_per_prompt": 4}


def weights(models):
    critic = models.value.named_parameters(prefix="critic") if models.value is not None else ()
    named = [*models.policy.model.named_parameters(), *critic]
    return {name: p.detach().clone() for name, p in named}


def begin(config, checkpoint=None, runtime=CPU):
    models = load_models(config, runtime, checkpoint=checkpoint)
    return models, initial_state(config, models, make_stream(models, config))


@eight_bit
@pytest.mark.parametrize(("critic", "rank"), [("separate", 0), ("adapter", 512)])
def test_eight_bit_states_go_on_bit_for_bit(policy_dir, tmp_path, critic, rank):
    config = make_config(
        policy_dir(eos_logit=3.0), value__kind=critic, policy__adapter__r=rank, optimizer__name="adamw_8bit"
    )
    store = make_store(tmp_path, config.checkpoint)
    models, state = begin(config)
    torch.manual_seed(config.seed)
    iterate(config, models, state)
    before = state.optimizer.state_dict()["state"]
    saved = store.save(Snapshot(models=models, state=state))
    expected_metrics, expected = iterate(config, models, state), weights(models)
    assert {t.dtype for entry in state.optimizer.state.values() for t in entry.values() if torch.is_tensor(t)} == {
        torch.uint8,
        torch.float32,
    }

    torch.manual_seed(999)
    models, state = begin(config, saved)
    load_training_state(state, saved / "trainer_state")
    assert state.optimizer.state_dict()["state"].keys() == before.keys()
    assert iterate(config, models, state) == expected_metrics
    final = weights(models)
    assert [name for name in final if not torch.equal(final[name], expected[name])] == []


def like_bitsandbytes(optimizer):
    """Give `optimizer` states of the layout that bitsandbytes' AdamW8bit hands out: nested, a count, shared tables."""
    table = torch.linspace(-1, 1, 256)
    index = -1
    for index, weight in enumerate(w for group in optimizer.param_groups for w in group["params"]):
        codes = torch.randint(0, 256, weight.shape, dtype=torch.uint8)
        optimizer.state[weight] = {
            "step": 3 + index,
            "quantised": {"state1": codes, "qmap1": table, "absmax1": torch.rand(-(-weight.numel() // 256))},
        }
    assert index > 0


class AnyState(torch.optim.SGD):
    """Hands out its states, and takes them in, as they are."""

    def state_dict(self):
        return {"state": dict(enumerate(self.state.values())), "param_groups": []}

    def load_state_dict(self, saved):
        self.loaded = saved["state"]


def test_nested_states_whole_numbers_and_shared_tables_come_back(policy_dir, tmp_path):
    config = make_config(policy_dir())
    models, state = begin(config)
    state.optimizer = AnyState(models.policy.trainable_parameters(), lr=1.0)
    like_bitsandbytes(state.optimizer)
    save_training_state(state, tmp_path)
    load_training_state(state, tmp_path)
    saved, loaded = state.optimizer.state_dict()["state"], state.optimizer.loaded
    assert loaded.keys() == saved.keys()
    for index, entry in saved.items():
        assert loaded[index]["step"] == entry["step"]
        assert type(loaded[index]["step"]) is int
        tensors = loaded[index]["quantised"]
        assert tensors.keys() == entry["quantised"].keys()
        for name, tensor in entry["quantised"].items():
            assert tensors[name].dtype == tensor.dtype
            assert torch.equal(tensors[name], tensor)


def test_states_of_another_optimizer_are_refused(policy_dir, tmp_path):
    config = make_config(policy_dir())
    models, state = begin(config)
    adamw = state.optimizer
    state.optimizer = AnyState(models.policy.trainable_parameters(), lr=1.0)
    like_bitsandbytes(state.optimizer)
    save_training_state(state, tmp_path)
    state.optimizer = adamw
    with pytest.raises(ValueError, match="not those of AdamW"):
        load_training_state(state, tmp_path)


ROLES = [(c, s) for c in ("separate", "shared", "adapter", "none") for s in STARTS if (c, s) != ("adapter", "full")]


@pytest.mark.parametrize(
    ("objective", "critic", "start", "dtype"),
    [
        *(("ppo", *roles, "auto") for roles in ROLES),
        *((name, "separate", "full", "auto") for name in OBJECTIVES if name != "ppo"),
        *(("apa", *roles, "bf16") for roles in (("separate", "full"), ("adapter", "lora"))),
    ],
)
def test_goes_on_bit_for_bit(policy_dir, adapter_dir, tmp_path, objective, critic, start, dtype):
    adapter = {"policy__adapter__path": str(adapter_dir)} if start == "trained" else STARTS[start]
    config = make_config(
        policy_dir(eos_logit=3.0) if start != "trained" else policy_dir(),
        **OBJECTIVES[objective],
        **adapter,
        value__kind=critic,
        **(GROUP if critic == "none" else {}),
        optimizer__schedule="cosine",
        optimizer__warmup_iterations=1,
        training__iterations=5,
        checkpoint__keep=0,
        precision="bf16" if dtype == "bf16" else "fp32",
        policy__dtype=dtype,
    )
    store, runtime = make_store(tmp_path, config.checkpoint), BF16 if dtype == "bf16" else CPU
    models, state = begin(config, runtime=runtime)
    initial = weights(models)
    torch.manual_seed(config.seed)
    for _ in range(2):
        iterate(config, models, state)
    saved = store.save(Snapshot(models=models, state=state))
    at_save = weights(models)
    expected_metrics = [iterate(config, models, state) for _ in range(2)]
    expected = weights(models)
    trained = [name for name in expected if not torch.equal(expected[name], initial[name])]
    assert any(name.startswith("critic") for name in trained) == (critic != "none")
    assert (saved / "value").is_dir() == (critic != "none")
    assert any(not name.startswith("critic") for name in trained)

    torch.manual_seed(999)
    random.seed(999)
    models, state = begin(config, saved, runtime)
    loaded = weights(models)
    assert loaded.keys() == at_save.keys()
    assert [name for name in loaded if not torch.equal(loaded[name], at_save[name])] == []
    load_training_state(state, saved / "trainer_state")
    assert state.iteration == 2
    metrics = [iterate(config, models, state) for _ in range(2)]
    assert metrics == expected_metrics
    final = weights(models)
    assert [name for name in final if not torch.equal(final[name], expected[name])] == []
    if "objective__kl_target" in OBJECTIVES[objective]:
        assert metrics[0]["knob"] not in (config.objective.kl_coef, config.objective.kl_lambda)
        assert metrics[1]["knob"] != metrics[0]["knob"]


def test_every_random_state_comes_back(policy_dir, tmp_path):
    config = make_config(policy_dir())
    _, state = begin(config)
    np.random.seed(4)
    np.random.standard_normal()  # leaves its pair behind
    random.seed(5)
    random.gauss(0, 1)  # so does this
    torch.manual_seed(6)
    save_training_state(state, tmp_path)

    def draw():
        return [np.random.standard_normal(3).tolist(), [random.gauss(0, 1) for _ in range(3)], torch.rand(3).tolist()]

    expected = draw()
    draw()
    load_training_state(state, tmp_path)
    assert draw() == expected


def test_a_critic_is_not_resumed_from_a_checkpoint_without_one(policy_dir, tmp_path):
    from apa_cli.errors import UserError

    config = make_config(policy_dir(), value__kind="none", **GROUP)
    models, state = begin(config)
    saved = make_store(tmp_path, config.checkpoint).save(Snapshot(models=models, state=state))
    with pytest.raises(UserError, match=r"^value\.kind: separate, but .* holds no critic; add value=none$"):
        begin(make_config(policy_dir()), saved)
