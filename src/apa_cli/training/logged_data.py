"""rollout.source=offline: read logged responses and compute their reference log-probs before the loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from apa_cli.config.schema import TrainConfig
from apa_cli.data.logged import LoggedSet, ResponseEncoder, load_logged
from apa_cli.data.prompts import Prompt, PromptSet, collate
from apa_cli.data.table import Progress
from apa_cli.data.template import Template
from apa_cli.models.reference import reference_fingerprint
from apa_cli.models.roles import Models
from apa_cli.rollouts.attendant import Attendant
from apa_cli.rollouts.reference_logprobs import ReferenceLogprobs, cache_folder, cache_key, reference_logprobs
from apa_cli.rollouts.sources import logged_responses, passes
from apa_cli.tracking.tracker import Tracker

ROWS = 512  # between two updates of the progress shown


def read_logged(prompts: PromptSet, config: TrainConfig, models: Models, progress: Progress) -> LoggedSet:
    """Raises UserError for rows without a response that can be used."""
    encoder = ResponseEncoder(
        template=Template(models.policy.tokenizer, config.data.arguments),
        eos_token_ids=models.policy.eos_token_ids,
        closing=models.policy.closing_token(chat=False),
        closing_turn=models.policy.closing_token(chat=True),
        stop=config.generation.stop,
        max_new_tokens=config.generation.max_new_tokens,
        progress=progress,
    )
    return load_logged(prompts, config, encoder)


def view_of_reference(
    rows: Sequence[Prompt], models: Models, config: TrainConfig, attendant: Attendant, tracker: Tracker
) -> ReferenceLogprobs:
    """log π_ref of every logged response, cached by an earlier run with the same model and data."""
    runtime, temperature = models.runtime, config.generation.temperature
    key = cache_key(
        reference_fingerprint(models.reference),
        rows,
        temperature=temperature,
        arithmetic=config.precision,
        device=runtime.device.type,
        attention=config.policy.attn_implementation,
    )

    def compute(rows: Sequence[Prompt]) -> list[Tensor]:
        order = sorted(range(len(rows)), key=lambda i: (_length(rows[i]), i))  # similar lengths together
        found: dict[int, Tensor] = {}
        for start in range(0, len(order), ROWS):
            tracker.phase("reference", start, len(order))
            part = order[start : start + ROWS]
            batch = collate([rows[i] for i in part], models.policy.pad_token_id)
            done = passes(logged_responses(batch, None, runtime.device), replace(models, value=None), config, attendant)
            assert done.reference_logprobs is not None
            logprobs, lengths = done.reference_logprobs.cpu(), done.response_mask.sum(dim=1).tolist()
            found |= {i: logprobs[row, : lengths[row]] for row, i in enumerate(part)}
        return [found[i] for i in range(len(rows))]

    with torch.no_grad():
        folder = cache_folder(config.rollout.reference_cache)
        return reference_logprobs(rows, key, folder, compute, note=tracker.note, warn=tracker.warn)


def _length(row: Prompt) -> int:
    return len(row.token_ids) + (len(row.logged.token_ids) if row.logged is not None else 0)
