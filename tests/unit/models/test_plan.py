"""The plan against hand arithmetic, against models that were really loaded, and against what autograd really keeps."""

from dataclasses import replace

import pytest
import torch
from tiny_models import eight_bit, make_config
from transformers import GPTNeoXConfig, GPTNeoXModel, LlamaConfig, LlamaModel

from apa_cli.algorithms import head
from apa_cli.errors import UserError
from apa_cli.models import memory
from apa_cli.models.device import Runtime
from apa_cli.models.plan import (
    Estimate,
    Plan,
    Role,
    activation_bytes,
    check_fits,
    gib,
    head_logits_bytes,
    kv_cache_bytes,
    sampling_logits_bytes,
)
from apa_cli.models.plan_roles import make_plan, remedies, shape_of
from apa_cli.models.roles import load_models
from apa_cli.rewards.scorers import load_scorers
from apa_cli.training.optimizer import make_optimizer

GIB = 1 << 30
PYTHIA_410M = GPTNeoXConfig(
    hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, vocab_size=50304
)
LLAMA_2_70B = LlamaConfig(
    hidden_size=8192,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    intermediate_size=28672,
    vocab_size=32000,
)


def save_config(folder, config, architecture):
    """A model folder without weights."""
    folder.mkdir()
    config.architectures = [architecture]
    config.save_pretrained(folder)
    return folder


def runtime(bf16=False):
    return Runtime(device=torch.device("cpu"), bf16=bf16)


def test_kv_cache_by_hand():
    # 2 × 24 layers × 16 heads × 64 × 64 responses × 640 tokens × 2 bytes
    shape = shape_of(PYTHIA_410M, gated=False)
    assert kv_cache_bytes(shape, rows=64, tokens=640, element_bytes=2) == 2 * 24 * 1024 * 64 * 640 * 2 == 4_026_531_840
    # grouped queries: 2 × 80 × 8 × 128 × 2 bytes are the 320 KiB a token that this model is known for
    grouped = shape_of(LLAMA_2_70B, gated=True)
    assert kv_cache_bytes(grouped, rows=1, tokens=1, element_bytes=2) == 320 * 1024


def test_logits_by_hand():
    shape = shape_of(PYTHIA_410M, gated=False)
    assert sampling_logits_bytes(shape, rows=64) == 3 * 64 * 50304 * 4
    assert head_logits_bytes(shape, tokens=100, device_type="cpu") == 100 * 50304 * 4
    # no more is ever kept
    assert head_logits_bytes(shape, tokens=10**6, device_type="cpu") == head.KEEP_BYTES["cpu"] == 32 << 20
    assert head_logits_bytes(shape, tokens=10**6, device_type="cuda") == head.KEEP_BYTES["cuda"] == 256 << 20


@pytest.mark.parametrize(
    ("changes", "rows"), [({}, 64), ({"generation__rows": 10}, 10), ({"generation__backend": "static"}, 200)]
)
def test_generation_holds_the_rows_that_are_decoded_at_once(tmp_path, changes, rows):
    folder = save_config(tmp_path / "model", PYTHIA_410M, "GPTNeoXForCausalLM")
    config = make_config(
        folder, rollout__batch_size=200, data__max_prompt_tokens=512, generation__max_new_tokens=128, **changes
    )
    generation = make_plan(config, runtime()).estimates[0]
    assert generation.of.endswith(f"{rows} × up to 512 + 128 tokens")
    assert generation.bytes == 2 * 24 * 1024 * rows * 640 * 4 + 3 * rows * 50304 * 4


def test_pythia_410m_in_full(tmp_path):
    """405,334,016 parameters, as its model card says; the critic has no output embedding but a head of 1,025."""
    folder = save_config(tmp_path / "model", PYTHIA_410M, "GPTNeoXForCausalLM")
    plan = make_plan(make_config(folder), runtime())
    policy, reference, value, reward = plan.roles
    parameters = 405_334_016
    assert (policy.parameters, policy.trained, policy.parameter_bytes) == (parameters, parameters, 4 * parameters)
    assert (policy.gradient_bytes, policy.optimizer_bytes) == (4 * parameters, 8 * parameters)
    assert (reference.parameters, reference.trained, reference.bytes) == (parameters, 0, 4 * parameters)
    assert value.parameters == value.trained == parameters - 50304 * 1024 + 1025
    assert reward.bytes == 0
    assert plan.kv_row_bytes == 2 * 24 * 1024 * 6 * 4  # six new tokens


def test_eight_bit_states_by_hand(tmp_path):
    """1 byte a number and 4 a block of 256, twice; vectors of 1,024 numbers in float32. Of 24 layers and the ends."""
    folder = save_config(tmp_path / "model", PYTHIA_410M, "GPTNeoXForCausalLM")
    policy = make_plan(make_config(folder, optimizer__name="adamw_8bit"), runtime()).roles[0]
    small = 24 * (3072 + 6 * 1024) + 2 * 1024  # biases and norms, but those of 4,096 numbers
    large = 405_334_016 - small
    assert large % 256 == 0
    assert policy.optimizer_bytes == 8 * small + 2 * large + 8 * large // 256


def test_lora_on_pythia_410m_in_bf16(tmp_path):
    """r = 16 on query_key_value: 24 layers × 16 × (1024 + 3072), in float32 on a frozen base in bf16."""
    folder = save_config(tmp_path / "model", PYTHIA_410M, "GPTNeoXForCausalLM")
    config = make_config(folder, policy__adapter__r=16, value__kind="shared", precision="bf16")
    policy, reference, value, _ = make_plan(config, runtime(bf16=True)).roles
    adapter = 24 * 16 * (1024 + 3072)
    assert policy.trained == adapter == 1_572_864
    assert policy.parameter_bytes == 2 * 405_334_016 + 4 * adapter
    assert (policy.gradient_bytes, policy.optimizer_bytes) == (4 * adapter, 8 * adapter)
    assert reference.bytes == 0
    assert value.parameters == 1025


SETTINGS = {
    "full": {},
    "shared": {"value__kind": "shared"},
    "lora": {"policy__adapter__r": 2},
    "two-adapters": {"policy__adapter__r": 2, "value__kind": "adapter"},
    "two-adapters-bf16": {"policy__adapter__r": 2, "value__kind": "adapter", "precision": "bf16"},
    "lora-bf16": {"policy__adapter__r": 2, "precision": "bf16"},
    "full-bf16": {"precision": "bf16"},
    "full-all-bf16": {"precision": "bf16", "policy__dtype": "bf16"},
    "two-adapters-all-bf16": {
        "policy__adapter__r": 2,
        "value__kind": "adapter",
        "precision": "bf16",
        "policy__dtype": "bf16",
    },
    "lora-all-fp32": {"policy__adapter__r": 2, "precision": "bf16", "policy__dtype": "fp32"},
    "full-8bit": {"optimizer__name": "adamw_8bit"},
    "lora-8bit": {"policy__adapter__r": 512, "optimizer__name": "adamw_8bit"},
    "none": {"value__kind": "none", "advantage__name": "group", "rollout__responses_per_prompt": 4},
}


SMALL = ("step", "qmap1", "qmap2")  # a number a tensor; two tables in all


def distinct(*groups):
    return {id(p): p for group in groups for p in group}.values()


def bytes_of(tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize(
    ("kind", "family"),
    [
        *(
            pytest.param(kind, family, marks=eight_bit if "8bit" in kind else ())
            for kind in SETTINGS
            for family in ("gpt_neox", "llama", "gpt2", "gemma2")
        ),
        ("trained-adapter", "gpt_neox"),
        ("trained-adapter-thrice", "gpt_neox"),
        ("own-reference", "llama"),
    ],
)
def test_the_plan_is_what_is_loaded(policy_dir, reward_dir, adapter_dir, kind, family):
    """Parameters and bytes of every tensor that a loaded run holds, gradients and optimizer states after a step."""
    settings = SETTINGS.get(kind, {})
    if kind.startswith("trained-adapter"):
        settings = {"policy__adapter__path": str(adapter_dir)}
    if kind == "trained-adapter-thrice":  # policy's, reference's and critic's
        settings["value__kind"] = "adapter"
    if kind == "own-reference":
        settings = {"reference__path": str(policy_dir(kind=family))}
    config = make_config(
        policy_dir(kind=family), reward__kind="model", reward__function=None, reward__path=str(reward_dir), **settings
    )
    where = runtime(bf16=config.precision == "bf16")
    plan = {role.name: role for role in make_plan(config, where).roles}
    models = load_models(config, where)
    with models.reference.active() as frozen:
        reference = [] if models.reference.shares_weights else list(frozen.model.parameters())
    policy, reward = (
        list(m.parameters()) for m in (models.policy.model, load_scorers(config, models.policy, where).reward.model)
    )
    value = list(models.value.parameters()) if models.value is not None else []
    loaded = distinct(policy, reference, value, reward)
    assert sum(role.parameter_bytes for role in plan.values()) == bytes_of(loaded)
    assert sum(role.parameters for role in plan.values()) == sum(p.numel() for p in loaded)
    assert plan["policy"].trained == sum(p.numel() for p in models.policy.trainable_parameters())
    assert plan["value"].trained == sum(p.numel() for p in value)
    assert plan["reward"].parameter_bytes == bytes_of(reward)
    optimizer = make_optimizer(models, config.optimizer)
    for p in distinct(policy, value):
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    optimizer.step()
    assert sum(role.gradient_bytes for role in plan.values()) == bytes_of(p.grad for p in loaded if p.grad is not None)
    states = [t for state in optimizer.state.values() for name, t in state.items() if name not in SMALL]
    assert sum(role.optimizer_bytes for role in plan.values()) == bytes_of(states)


def kept(model, rows, tokens, *, checkpointing):
    """Bytes that a forward leaves for its backward, weights apart."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(input_ids=torch.randint(0, 90, (rows, tokens)), use_cache=False)
    return sum(size for size, _ in found.values())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["plain", "gated"])
def test_activations_are_about_what_autograd_keeps(kind, checkpointing):
    sizes = {"hidden_size": 128, "num_hidden_layers": 8, "num_attention_heads": 4, "vocab_size": 100}
    if kind == "plain":
        model = GPTNeoXModel(GPTNeoXConfig(**sizes, intermediate_size=512))
    else:
        model = LlamaModel(LlamaConfig(**sizes, intermediate_size=512, num_key_value_heads=2))
    shape = shape_of(model.config, gated=kind == "gated")
    assert shape.mlp == kind
    said = activation_bytes(shape, tokens=4 * 64, bf16=False, checkpointing=checkpointing, residual_bytes=4)
    if checkpointing:  # the layer that is made anew in backward is not kept by the forward
        one = replace(shape, layers=1)
        said -= activation_bytes(one, tokens=256, bf16=False, checkpointing=False, residual_bytes=4)
    assert 0.8 * said < kept(model, 4, 64, checkpointing=checkpointing) < 1.2 * said


def plan_of(available, *, policy=6 * GIB, extra=2 * GIB):
    return Plan(
        roles=(
            Role(name="policy", weights="", parameter_bytes=policy // 2, gradient_bytes=policy // 2),
            Role(name="reference", weights="", parameter_bytes=GIB),
        ),
        estimates=(Estimate(name="generation", of="", bytes=GIB // 2), Estimate(name="update", of="", bytes=extra)),
        kv_row_bytes=GIB // 8,
        device="CPU",
        available_bytes=available,
    )


def test_what_certainly_does_not_fit_is_refused():
    with pytest.raises(UserError) as refused:
        check_fits(plan_of(7 * GIB), remedies=["add policy=lora"])  # 7 GiB and a row of cache
    line = str(refused.value)
    assert "7.1 GiB" in line
    assert "the policy with 6.0 GiB" in line
    assert "add policy=lora, or a smaller model" in line


def test_what_may_not_fit_is_a_warning():
    assert "training.microbatch_tokens" in check_fits(plan_of(8 * GIB), remedies=[])
    assert check_fits(plan_of(9 * GIB), remedies=[]) is None
    assert check_fits(plan_of(None), remedies=[]) is None


def test_remedies_are_those_that_are_left(policy_dir):
    assert [r.split()[0:2] for r in remedies(make_config(policy_dir()))] == [
        ["add", "policy=lora"],
        ["value=shared", "(no"],
        ["optimizer.name=adamw_8bit", "(optimizer"],
        ["precision=bf16", "(frozen"],
    ]
    small = make_config(policy_dir(), policy__adapter__r=2, value__kind="shared", precision="bf16")
    assert remedies(small) == []


def test_available_memory_is_the_least_that_any_limit_leaves(tmp_path, monkeypatch):
    cpu = torch.device("cpu")
    meminfo, limit, statistics = (tmp_path / name for name in ("meminfo", "limit", "stat"))
    meminfo.write_text("MemTotal:       1000 kB\nMemAvailable:    600 kB\n")
    statistics.write_text("file 900000\nanon 100000\n")
    monkeypatch.setattr(memory, "MEMINFO", meminfo)
    monkeypatch.setattr(memory, "CGROUPS", ((limit, statistics, "anon"),))
    assert memory.available_bytes(cpu) == 600 * 1024
    limit.write_text("max\n")
    assert memory.available_bytes(cpu) == 600 * 1024
    limit.write_text("500000\n")
    assert memory.available_bytes(cpu) == 400_000
    meminfo.unlink()
    limit.unlink()
    assert memory.available_bytes(cpu) is None


def test_sizes_are_readable():
    assert [gib(n) for n in (300, 5 << 20, 12 << 20, 3 * GIB, 100 * GIB)] == [
        "0.3 KiB",
        "5.0 MiB",
        "12 MiB",
        "3.0 GiB",
        "100 GiB",
    ]


def test_the_rollout_fits_the_bound_of_its_cache(policy_dir):
    """The cache that generation really builds is the one that is planned, for this prompt and response length."""
    config = make_config(policy_dir())
    models = load_models(config, runtime())
    ids = torch.randint(3, 50, (5, 11))
    cache = models.policy.model(input_ids=ids, use_cache=True).past_key_values
    held = sum(bytes_of((layer.keys, layer.values)) for layer in cache.layers)
    shape = shape_of(models.policy.model.config, gated=False)
    assert held == kv_cache_bytes(shape, rows=5, tokens=11, element_bytes=4)
