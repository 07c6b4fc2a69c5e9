"""What an update needs, without the loop before it."""

from dataclasses import replace
from types import SimpleNamespace

import torch
from tiny_models import CPU, make_config, make_rollout, uneven_batch

from apa_cli.algorithms import Targets
from apa_cli.models.roles import load_models
from apa_cli.training.optimizer import make_optimizer
from apa_cli.training.state import Work, objective_of
from apa_cli.training.steward.health import Health
from apa_cli.training.steward.steward import Steward
from apa_cli.training.update import Progress, update


def setting(folder, rows=12, **changes):
    """Models, a rollout of very uneven rows, and targets drawn at random; the policy has moved since."""
    config = make_config(folder, **{"rollout__batch_size": rows, **changes})
    models = load_models(config, CPU)
    torch.manual_seed(13)
    if models.value is not None:
        torch.nn.init.normal_(models.value.head.linear.weight, std=0.1)
    trajectory = make_rollout(models, config, uneven_batch(models.policy, rows))
    shape = trajectory.response_mask.shape
    targets = Targets(advantages=torch.randn(shape), returns=torch.randn(shape), usable=torch.ones(rows).bool())
    with torch.no_grad():
        for p in (*models.policy.trainable_parameters(), *getattr(models.value, "adapter", ())):
            p.add_(0.02 * torch.randn_like(p))
    return config, models, trajectory, targets


def plainly(models, trajectory, targets, config, *, optimizer=None, **options):
    """An update that nobody attends to."""
    optimizer = optimizer or make_optimizer(models, config.optimizer)
    return update(models, optimizer, trajectory, targets, objective_of(config.objective), config, **options)


def attended(
    models, trajectory, targets, config, *, optimizer=None, health=None, progress=None, after=None, objective=None
):
    """An update under the steward: its metrics and the work. `after` is called with that where signals are heard."""
    optimizer = optimizer or make_optimizer(models, config.optimizer)
    health = health or Health.at_start(config.training)
    objective = objective or objective_of(config.objective)
    trajectory = replace(trajectory, scores=torch.zeros(len(trajectory.ended), dtype=torch.float64))
    work = Work(trajectory=trajectory, targets=targets, metrics={}, samples=[], progress=progress or Progress())
    state = SimpleNamespace(iteration=6, optimizer=optimizer, objective=objective, health=health, work=work)
    interrupts = SimpleNamespace(check=lambda: after(work) if after else None)
    steward = Steward(config, models, None, state, None, interrupts)
    stats = update(models, optimizer, trajectory, targets, objective, config, progress=work.progress, attendant=steward)
    return {**stats, "optim/skipped_minibatches": work.skipped}, work
