"""Export the policy as a Hugging Face model or PEFT adapter, with tokenizer and model card."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from apa_cli.checkpoints.ownership import RUN, own_files, record
from apa_cli.config.schema import TrainConfig
from apa_cli.files import UNFINISHED, files_in, partial_of, put_in_place
from apa_cli.models.loading import load_config, own_noise
from apa_cli.models.policy import Policy
from apa_cli.models.value import Value
from apa_cli.secrets import redact_text

logger = logging.getLogger(__name__)

CARD_METRICS = {
    "eval/reward": "reward, held-out prompts",
    "eval/evaluator": "separate evaluator",
    "eval/kl": "KL to the initial policy, nats per response",
    "eval/entropy": "entropy, nats per token",
    "eval/unique_fraction": "different responses",
    "eval/response_length": "response length, tokens",
}


def save_policy(policy: Policy, folder: Path) -> None:
    """Weights (all, or the adapter's), configuration and tokenizer, with the model's own generation settings."""
    model = policy.model
    if policy.is_peft:
        embeddings = bool(getattr(model, "brings_embeddings", False))
        model.save_pretrained(folder, selected_adapters=[model.active_adapter], save_embedding_layers=embeddings)
        (folder / "README.md").unlink(missing_ok=True)
    else:
        with own_noise(model):
            model.save_pretrained(folder)
        if policy.generation_config is not None:  # as it was, contradictions included: save_pretrained may refuse those
            policy.generation_config.to_json_file(folder / "generation_config.json")
    policy.tokenizer.save_pretrained(folder)


def export_final(
    policy: Policy,
    folder: Path,
    config: TrainConfig,
    before: Mapping[str, float],
    after: Mapping[str, float],
    critic: Value | None = None,
) -> Path:
    """Write final/, the policy, its model card and in value/ a critic: whole or not at all.

    What an earlier export wrote there is replaced; a user's own files in it stay.
    """
    partial = partial_of(folder)
    save_policy(policy, partial)
    _round_weights(partial, _final_dtype(config))
    if critic is not None:
        critic.save(partial / "value")
        (partial / "value" / "README.md").unlink(missing_ok=True)
    (partial / "README.md").write_text(redact_text(model_card(config, before, after)), encoding="utf-8")
    own = own_files(folder.parent, folder)
    record(folder.parent, RUN, [f"{folder.name}/{name}" for name in files_in(partial) if name != UNFINISHED])
    put_in_place(partial, folder, own)
    return folder


def _final_dtype(config: TrainConfig) -> torch.dtype | None:
    """The dtype to export; None for that of training."""
    named = {"bf16": torch.bfloat16, "fp16": torch.float16}
    choice, policy = config.checkpoint.final_dtype, config.policy
    if choice != "source":
        return named.get(choice)
    options = {"revision": policy.revision, "trust_remote_code": policy.trust_remote_code}
    dtype = getattr(load_config("policy.path", policy.path, **options), "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else None


def _round_weights(folder: Path, dtype: torch.dtype | None) -> None:
    """Convert a saved model or adapter to `dtype`, one file at a time, and note it in config.json."""
    if dtype is None:
        return
    for file in folder.glob("*.safetensors"):
        weights = {n: t.to(dtype) if t.is_floating_point() else t for n, t in load_file(file).items()}
        if not all(weight.isfinite().all() for weight in weights.values()):
            logger.warning("checkpoint.final_dtype: %s has numbers beyond %s, and final/ stays as trained", file, dtype)
            return
        save_file(weights, file, metadata={"format": "pt"})
    if (folder / "config.json").is_file():
        facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        facts["dtype"] = str(dtype).removeprefix("torch.")
        (folder / "config.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def model_card(config: TrainConfig, before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """The model card: base, training and metrics before and after."""
    objective, policy, method = config.objective, config.policy, config.method
    symbol, value = objective.knob
    knob = f"{symbol} {value:g}"
    knob += f" at first, steered to a KL of {t:g} nats" if (t := objective.kl_target) is not None else " (fixed)"
    if objective.target_bound is not None:
        knob += f", target log-ratios within ± {objective.target_bound:g} nats"
    if objective.huber_delta is not None:
        knob += f", Huber's error beyond {objective.huber_delta:g} nats"
    hub_id = not policy.path.startswith(("builtin:", ".", "/", "~")) and policy.path.count("/") <= 1
    base = f"base_model: {policy.path}\n" if hub_id and not Path(policy.path).exists() else ""
    work = f"{config.training.iterations} × {config.rollout.batch_size} responses"
    rows = [
        f"| {label} | {before[name]:.3f} | {after[name]:.3f} |"
        for name, label in CARD_METRICS.items()
        if name in before and name in after
    ]
    table = "\n".join(["| metric | before | after |", "|---|---|---|", *rows])
    return f"""---
tags:
- rlhf
- {method}
{base}library_name: {"peft" if policy.adapter.enabled else "transformers"}
---

# {Path(policy.path).name}, aligned with {method.upper()}

- base: `{policy.path}`{f" at `{policy.revision}`" if policy.revision else ""}
- data: `{config.data.path}`
- reward: `{config.reward.source}`
- objective: {method.upper()}, {knob}
- iterations: {work}, learning rate {config.optimizer.learning_rate:g}, seed {config.seed}
- weights: {"LoRA adapter" if policy.adapter.enabled else "full model"}

## Measured on held-out prompts

{table if rows else "No evaluation was configured."}

Trained with apa-cli (APA: arXiv 2306.02231). The reward is a proxy: judge the model before using it.
"""
