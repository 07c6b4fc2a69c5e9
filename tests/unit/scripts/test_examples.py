"""APA in other trainers: the examples called as verl and prime-rl document it, beside our own loss."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from apa_cli.algorithms import apa_loss

EXAMPLES = Path(__file__).parents[3] / "scripts" / "examples"
LENGTHS = [5, 2, 7, 1]
KL_LAMBDA = 0.3
VERL = {"old_log_prob": "rollout", "advantages": "advantages", "response_mask": "mask"}  # its names of ours


def load(name: str, monkeypatch: pytest.MonkeyPatch, place: str, **contents: Any) -> ModuleType:
    """The example `name`, while `place` is a module that holds `contents` alone."""
    module = ModuleType(place)
    vars(module).update(contents)
    parts = place.split(".")
    for end in range(1, len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(".".join(parts[:end])))
    monkeypatch.setitem(sys.modules, place, module)
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return example


@pytest.fixture
def verl_loss(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Tensor, dict[str, Any]]]:
    """What a stand-in of verl's registry then finds under the name apa."""
    registry: dict[str, Callable[..., tuple[Tensor, dict[str, Any]]]] = {}

    def register_policy_loss(name: str) -> Callable[[Any], Any]:
        return lambda function: registry.setdefault(name, function)

    place = "verl.trainer.ppo.core_algos"
    example = load("verl_apa", monkeypatch, place, register_policy_loss=register_policy_loss)
    assert example.KL_LAMBDA == KL_LAMBDA
    assert list(registry) == ["apa"]
    return registry["apa"]


@pytest.fixture
def prime_loss(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    place = "prime_rl.trainer.rl.loss"
    return load("prime_rl_apa", monkeypatch, place, LossInputs=SimpleNamespace, LossOutputs=SimpleNamespace).apa


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Float64 log-probs and advantages (B, T) of uneven responses, NaN behind their ends."""
    torch.manual_seed(0)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]  # (B, T)
    names = ("policy", "rollout", "initial", "advantages")
    tensors = {name: torch.randn(mask.shape, dtype=torch.float64).where(mask, torch.nan) for name in names}
    return {**tensors, "mask": mask}


def gradient(loss: Callable[[Tensor], Tensor], policy: Tensor) -> Tensor:
    leaf = policy.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(leaf), leaf)
    return found


def ours(batch: dict[str, Tensor], anchor: str) -> Tensor:
    advantages, mask = batch["advantages"], batch["mask"]
    return gradient(lambda p: apa_loss(p, batch[anchor], advantages, mask, kl_lambda=KL_LAMBDA), batch["policy"])


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("ranks", [1, 2])
def test_verl(verl_loss: Any, batch: dict[str, Tensor], counted: bool, ranks: int):
    """One response a micro-batch where verl counts the minibatch's tokens, and else the minibatch in one."""
    tokens = {"dp_size": ranks, "batch_num_tokens": sum(LENGTHS)} if counted else {}
    parts = [slice(row, row + 1) for row in range(len(LENGTHS))] if counted else [slice(None)]

    def loss(policy: Tensor) -> Tensor:
        config, found = SimpleNamespace(global_batch_info=tokens), []
        for rows in parts:
            given = {name: batch[of][rows] for name, of in VERL.items()}
            given |= {"loss_agg_mode": "token-mean", "config": config, "rollout_is_weights": None}
            found.append(verl_loss(log_prob=policy[rows], **given))
        assert all(isinstance(metrics["actor/target_residual"], float) for _, metrics in found)
        return torch.stack([value for value, _ in found]).sum()

    assert_close(gradient(loss, batch["policy"]), ours(batch, "rollout") * (ranks if counted else 1))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"loss_agg_mode": "seq-mean-token-sum"}, "set loss_agg_mode=token-mean"),
        ({"rollout_is_weights": torch.ones(4, 7)}, "no importance weights"),
    ],
)
def test_verl_is_refused_what_apa_has_no_place_for(verl_loss: Any, batch: dict[str, Tensor], changes: Any, error: str):
    with pytest.raises(ValueError, match=error):
        verl_loss(batch["rollout"], batch["policy"], batch["advantages"], batch["mask"], **changes)


def sequence(batch: dict[str, Tensor], policy: Tensor, row: int, **changes: Any) -> SimpleNamespace:
    """What prime-rl hands over of one sequence: all of its tokens."""
    names = {"inference_logprobs": "rollout", "advantages": "advantages", "loss_mask": "mask"}
    inputs = {"trainer_logprobs": policy[row], **{name: batch[of][row] for name, of in names.items()}}
    return SimpleNamespace(**{**inputs, "ref_logprobs": None, "loss_weights": None, **changes})


def prime_gradient(prime_loss: Any, batch: dict[str, Tensor], weights: Tensor | None, **kwargs: Any) -> Tensor:
    """Of the losses of all sequences, added up and divided by their tokens."""

    def loss(policy: Tensor) -> Tensor:
        outputs = []
        for row in range(len(LENGTHS)):
            scored = {"ref_logprobs": batch["initial"][row]} if kwargs.get("anchor") == "reference" else {}
            weighted = {} if weights is None else {"loss_weights": weights[row]}
            inputs = sequence(batch, policy, row, **scored, **weighted)
            outputs.append(prime_loss(inputs, kl_lambda=KL_LAMBDA, **kwargs))
        assert all(output.metrics["target_residual"].dim() == 0 for output in outputs)
        return torch.stack([output.loss for output in outputs]).sum() / sum(LENGTHS)

    return gradient(loss, batch["policy"])


def test_prime_rl(prime_loss: Any, batch: dict[str, Tensor]):
    assert_close(prime_gradient(prime_loss, batch, None), ours(batch, "rollout"))
    assert_close(prime_gradient(prime_loss, batch, None, anchor="reference"), ours(batch, "initial"))
    weights = torch.rand_like(batch["policy"]) + 0.5
    assert_close(prime_gradient(prime_loss, batch, weights), weights * ours(batch, "rollout"))
    alone = sequence(batch, batch["policy"], 0)
    for anchor in ("reference", "initial"):
        with pytest.raises(ValueError, match=f"no log-probs for anchor={anchor}"):
            prime_loss(alone, anchor=anchor)
