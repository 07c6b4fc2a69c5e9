"""training.compile: the same gradient from a compiled update, and a line where there can be none."""

import functools
import shutil

import pytest
import torch
from tiny_models import CPU, make_config
from torch.testing import assert_close
from update_setting import setting

from apa_cli.errors import UserError
from apa_cli.models.compiled import compile_trunks
from apa_cli.models.roles import load_models
from apa_cli.training.state import objective_of
from apa_cli.training.update import accumulate_gradients

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def gradients(models, rollout, targets, config):
    """Of one minibatch in micro-batches of different shapes."""
    parameters = models.named_parameters()
    for parameter in parameters.values():
        parameter.grad = None
    rows = torch.arange(len(rollout.ended))
    with models.training():
        accumulate_gradients(models, rollout, targets, rows, objective_of(config.objective), config, 90)
    return {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}


def counted_calls(models, monkeypatch):
    """How often each compiled trunk was called."""
    calls = {}
    for holder in (models.policy, models.value):
        if (inner := getattr(holder, "compiled", None)) is not None:
            calls[type(holder)] = 0

            def call(*args, holder=holder, inner=inner, **kwargs):
                calls[type(holder)] += 1
                return inner(*args, **kwargs)

            monkeypatch.setattr(holder, "compiled", call)
    return calls


@pytest.mark.parametrize(
    ("changes", "backend"),
    [
        pytest.param({"value__kind": "shared"}, "inductor", marks=needs_compiler),
        ({"value__kind": "separate"}, "aot_eager"),  # traced and differentiated alike, without the minute of compiling
        ({"value__kind": "shared", "policy__adapter__r": 2}, "aot_eager"),
    ],
    ids=["shared", "separate", "lora"],
)
def test_a_compiled_update_has_the_gradient_of_the_plain_one(policy_dir, monkeypatch, changes, backend):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    config, models, rollout, targets = setting(policy_dir(kind="gpt_neox"), rows=6, **changes)
    names = list(models.policy.model.state_dict()), list(models.value.state_dict())
    plain = gradients(models, rollout, targets, config)
    state = torch.get_rng_state()
    compile_trunks(models.policy, models.value)
    assert torch.equal(torch.get_rng_state(), state)
    calls = counted_calls(models, monkeypatch)
    assert all(p.grad is None for p in (*models.policy.trainable_parameters(), *models.value.parameters()))
    fast = gradients(models, rollout, targets, config)
    assert plain.keys() == fast.keys() and len(plain) > 4
    for name, gradient in plain.items():
        assert_close(fast[name], gradient, atol=1e-5, rtol=1e-4)
    assert (list(models.policy.model.state_dict()), list(models.value.state_dict())) == names
    assert all(calls.values()) and len(calls) == (2 if changes["value__kind"] == "separate" else 1)
    before = dict(calls)
    with torch.no_grad():  # rollouts and passes go without
        models.policy.logprobs(rollout.batch, temperature=1.0)
        if changes["value__kind"] == "separate":
            models.value(rollout.batch)
    assert calls == before


def test_a_model_that_does_not_compile_is_said_in_a_line(policy_dir, monkeypatch):
    def fail(*inputs, **options):
        raise RuntimeError("no such operation\nand a long story")

    models = load_models(make_config(policy_dir(), value__kind="separate"), CPU)
    monkeypatch.setattr(torch, "compile", lambda forward, **options: fail)
    with pytest.raises(UserError, match=r"does not compile \(.*no such operation.*set it to false") as caught:
        compile_trunks(models.policy, models.value)
    assert "\n" not in str(caught.value)
    models.policy.parts = None
    with pytest.raises(UserError, match="called whole"):
        compile_trunks(models.policy, models.value)
