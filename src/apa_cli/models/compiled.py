"""torch.compile of the trunks of policy and critic, for the update only."""

from __future__ import annotations

from typing import Any

import torch

from apa_cli.errors import UserError
from apa_cli.models.loading import first_line
from apa_cli.models.policy import Policy, trial_batch
from apa_cli.models.value import SeparateValue, Value

KEY, REMEDY = "training.compile", "set it to false; torch compiles with g++ on a CPU, and with triton on a GPU"


def compile_trunks(policy: Policy, value: Value | None) -> None:
    """Compile for any number of rows and tokens, and try a forward and backward pass of two short rows.

    Compiles functions, not modules, so that parameters keep their names. Raises UserError if that fails.
    """
    if policy.parts is None:
        raise UserError(KEY, "this model's logits are not its head's alone, and it is called whole", REMEDY)
    policy.compiled = torch.compile(policy.parts.trunk.forward, dynamic=True)  # type: ignore[attr-defined]
    if isinstance(value, SeparateValue):
        value.compiled = torch.compile(value.trunk.forward, dynamic=True)
    devices = [policy.runtime.device] if policy.runtime.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), torch.enable_grad(), policy.training():
            batch = trial_batch(policy.model)
            policy.hidden_states(batch).float().sum().backward()  # type: ignore[no-untyped-call]
            if isinstance(value, SeparateValue):
                value.train()
                value(batch).sum().backward()
    except Exception as error:  # a compiler may fail in any way
        raise UserError(KEY, f"this model does not compile ({first_line(error)})", REMEDY) from error
    finally:
        if value is not None:
            value.eval()
        trained: list[Any] = [*policy.trainable_parameters(), *(value.parameters() if value is not None else ())]
        for parameter in trained:
            parameter.grad = None
