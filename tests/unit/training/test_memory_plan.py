"""The plan against hand arithmetic, against models that were really loaded, and against what an iteration allocates."""

import pytest
import torch
from tiny_models import CPU, iterate, make_config, make_prompts, save_policy
from torch.profiler import ProfilerActivity, profile

from apa_cli.data.prompts import PromptStream
from apa_cli.errors import UserError
from apa_cli.models import device
from apa_cli.models.device import Runtime
from apa_cli.models.roles import load_models
from apa_cli.rewards.scorers import load_scorers
from apa_cli.training import memory_plan
from apa_cli.training.memory_plan import (
    HEAP,
    Estimate,
    Plan,
    Role,
    announce_estimates,
    announce_models,
    make_plan,
    with_estimates,
)
from apa_cli.training.optimizer import make_optimizer
from apa_cli.training.state import initial_state

GIB = 1 << 30


def runtime(bf16=False):
    return Runtime(device=torch.device("cpu"), bf16=bf16)


LORA, TWO, BF16 = {"policy__adapter__r": 2}, {"policy__adapter__r": 2, "value__kind": "adapter"}, {"precision": "bf16"}
SETTINGS = {
    "full": {},
    "shared": {"value__kind": "shared"},
    "lora": LORA,
    "two-adapters-bf16": TWO | BF16,
    "full-bf16": BF16,
    "two-adapters-all-bf16": {**TWO, **BF16, "policy__dtype": "bf16"},
    "lora-all-fp32": {**LORA, **BF16, "policy__dtype": "fp32"},
    "none": {"value__kind": "none", "advantage__name": "group", "rollout__responses_per_prompt": 4},
}


def distinct(*groups):
    return {id(p): p for group in groups for p in group}.values()


def bytes_of(tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize(
    ("kind", "family"),
    [
        *((kind, "gpt_neox") for kind in SETTINGS),
        *((kind, family) for kind in ("full", "two-adapters") for family in ("llama", "gpt2", "gemma2")),
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
    plan = make_plan(config, where).roles
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
    states = [t for state in optimizer.state.values() for name, t in state.items() if name != "step"]
    assert sum(role.optimizer_bytes for role in plan.values()) == bytes_of(states)


def allocated(work):
    """The most that `work` holds of tensors of its own at a time, in bytes."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {"value__kind": "separate", "training__microbatch_tokens": 4096}),
        ("gpt_neox", {"value__kind": "shared", "policy__adapter__r": 4, "training__microbatch_tokens": 4096}),
        (
            "llama",
            {"value__kind": "shared", "training__microbatch_tokens": 128, "policy__gradient_checkpointing": True},
        ),
    ],
    ids=["full", "lora", "checkpointed"],
)
def test_the_estimate_is_within_30_percent_of_what_an_iteration_allocates(tmp_path, plain_tokenizer, kind, changes):
    """The second one: Adam's states are there."""
    save_policy(tmp_path, plain_tokenizer, kind=kind, hidden=128, layers=6)
    sizes = {"rollout__batch_size": 32, "training__minibatch_size": 16, "generation__max_new_tokens": 24}
    config = make_config(tmp_path, **sizes, **changes)
    models = load_models(config, CPU)
    alike = make_prompts(plain_tokenizer, ["the lazy dog jumps over the quick fox"] * 40)
    stream = PromptStream(alike, batch_size=32, seed=0, pad_token_id=models.policy.pad_token_id)
    plan = with_estimates(make_plan(config, CPU), config, CPU, stream.prompts)
    state = initial_state(config, models, stream)
    iterate(config, models, state)
    measured = allocated(lambda: iterate(config, models, state))
    assert max(e.bytes for e in plan.estimates) / HEAP["cpu"] == pytest.approx(measured, rel=0.3)


def test_longer_prompts_and_more_rows_at_once_need_more(tmp_path, plain_tokenizer):
    save_policy(tmp_path, plain_tokenizer, kind="llama")
    short, long = ([*make_prompts(plain_tokenizer, [text])] for text in ("to you", "the lazy dog " * 20))
    found = {}
    for name, prompts, tokens in (("short", short, 4096), ("long", long, 4096), ("cut", long, 64)):
        config = make_config(tmp_path, training__microbatch_tokens=tokens)
        found[name] = with_estimates(make_plan(config, CPU), config, CPU, prompts).estimates
    generation, update = zip(*found.values(), strict=True)
    assert generation[0].bytes < generation[1].bytes == generation[2].bytes
    assert update[0].bytes < update[2].bytes < update[1].bytes
    length = len(long[0].token_ids)
    assert f"8 × up to {length} + 6 tokens" in generation[1].of


def plan_of(available):
    """7 GiB for certain: a policy of 6, whose gradients are 3, and a reference of 1."""
    roles = (
        Role("policy", "", parameter_bytes=3 * GIB, gradient_bytes=3 * GIB),
        Role("reference", "", parameter_bytes=GIB),
    )
    needs = (Estimate("generation", GIB // 2, ""), Estimate("update", 5 * GIB, ""))  # its gradients among the 5
    plan = {role.name: role for role in roles}
    return Plan(plan, (), "CPU", available, 0, needs)


def test_what_certainly_does_not_fit_is_refused_and_what_may_not_is_a_warning(monkeypatch):
    for available in (7 * GIB, None):
        monkeypatch.setattr(memory_plan, "make_plan", lambda *_, available=available: plan_of(available))
        announce_models(None, CPU, print)
    monkeypatch.setattr(memory_plan, "make_plan", lambda *_: plan_of(7 * GIB - 1))
    with pytest.raises(UserError, match=r"take 7\.0 GiB.*the policy with 6\.0 GiB; add policy=lora, .*smaller model"):
        announce_models(None, CPU, print)
    monkeypatch.setattr(memory_plan, "with_estimates", lambda plan, *rest: plan)
    for available, warned in ((9 * GIB, 0), (None, 0), (9 * GIB - 1, 1)):
        warnings = []
        announce_estimates(plan_of(available), None, CPU, [], print, warnings.append)
        assert len(warnings) == warned
    assert "training.microbatch_tokens" in warnings[0]


def test_available_memory_is_the_least_that_any_limit_leaves(tmp_path, monkeypatch):
    meminfo, limit, statistics = (tmp_path / name for name in ("meminfo", "limit", "stat"))
    meminfo.write_text("MemTotal:       1000 kB\nMemAvailable:    600 kB\n")
    statistics.write_text("file 900000\nanon 100000\n")
    monkeypatch.setattr(device, "MEMINFO", meminfo)
    monkeypatch.setattr(device, "CGROUPS", ((limit, statistics, "anon"),))
    assert CPU.available_bytes() == 600 * 1024
    limit.write_text("max\n")
    assert CPU.available_bytes() == 600 * 1024
    limit.write_text("500000\n")
    assert CPU.available_bytes() == 400_000
    meminfo.unlink()
    limit.unlink()
    assert CPU.available_bytes() is None
