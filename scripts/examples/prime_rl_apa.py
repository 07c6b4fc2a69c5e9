"""APA as a custom loss of prime-rl, for a copy of yours.

    [trainer.loss]
    type = "custom"
    import_path = "prime_rl_apa.apa"

    [trainer.loss.kwargs]
    kl_lambda = 0.3

The file must be on the trainer's PYTHONPATH. prime-rl calls the function with one sequence at a time, adds up what it
returns and divides by the number of tokens, so a sequence's loss is the sum over its tokens.

The anchor is the policy that sampled, as the inference engine saw it (`objective.anchor=rollout`): each step is kept
near it, and nothing holds the run near the initial policy. `ref_logprobs` are those of the model that an algorithm with
reference scoring names, and absent otherwise. Where that model is the initial policy, `anchor = "reference"` gives the
paper's APA.
"""

from __future__ import annotations

from prime_rl.trainer.rl.loss import LossInputs, LossOutputs

from apa_cli.algorithms import apa_loss, apa_target_residual


def apa(inputs: LossInputs, kl_lambda: float = 0.3, anchor: str = "rollout") -> LossOutputs:
    """Squared error summed over the tokens of one sequence, each times its weight where there are weights.

    Raises ValueError for an anchor whose log-probs are not there.
    """
    anchors = {"rollout": inputs.inference_logprobs, "reference": inputs.ref_logprobs}
    if (anchored := anchors.get(anchor)) is None:
        raise ValueError(
            f"no log-probs for anchor={anchor}: use rollout, or reference with an algorithm that scores it"
        )
    tensors = [inputs.trainer_logprobs, anchored, inputs.advantages]
    if inputs.loss_weights is not None:  # w d² = (√w d)²
        tensors = [tensor * inputs.loss_weights.sqrt() for tensor in tensors]
    policy, start, advantages = (tensor[None] for tensor in tensors)  # (1, T)
    mask = inputs.loss_mask[None]
    squares, count = apa_target_residual(policy, start, advantages, mask, kl_lambda=kl_lambda)
    loss = apa_loss(policy, start, advantages, mask, kl_lambda=kl_lambda) * count
    return LossOutputs(loss=loss, metrics={"target_residual": (squares / count.clamp(min=1)).sqrt()})
