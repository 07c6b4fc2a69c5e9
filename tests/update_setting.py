"""What an update needs, without the loop before it."""

import torch
from tiny_models import CPU, make_config, make_rollout, uneven_batch

from apa_cli.models.roles import load_models
from apa_cli.training.targets import Targets


def setting(folder, rows=12, **changes):
    """Models, a rollout of very uneven rows, and targets drawn at random; the policy has moved since."""
    config = make_config(folder, **{"rollout__batch_size": rows, **changes})
    models = load_models(config, CPU)
    torch.manual_seed(13)
    if models.value is not None:
        torch.nn.init.normal_(models.value.head.linear.weight, std=0.1)
    rollout = make_rollout(models, config, uneven_batch(models.policy, rows))
    shape = rollout.response_mask.shape
    targets = Targets(advantages=torch.randn(shape), returns=torch.randn(shape))
    with torch.no_grad():
        for p in (*models.policy.trainable_parameters(), *getattr(models.value, "adapter", ())):
            p.add_(0.02 * torch.randn_like(p))
    return config, models, rollout, targets
