"""Scores of the initial policy's own responses to each prompt: drawn once, and kept on disk from run to run."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from apa_cli.algorithms import scale_scores
from apa_cli.config.schema import TrainConfig
from apa_cli.data.prompts import Prompt, PromptBatch, PromptStream, collate
from apa_cli.evaluation.respond import own_random_states
from apa_cli.models.reference import Reference, reference_fingerprint
from apa_cli.rewards.scorers import Scorers
from apa_cli.rollouts.attendant import Attendant
from apa_cli.rollouts.generation import sample
from apa_cli.rollouts.reference_logprobs import cache_folder
from apa_cli.rollouts.sources import finished_responses
from apa_cli.tracking.log import LOGGER
from apa_cli.training.inputs import digests
from apa_cli.training.iteration import Learner, score
from apa_cli.training.targets import length_penalties, less_penalties

KIND = "apa-cli reference scores 1"
_log = logging.getLogger(LOGGER)


class ReferenceScores:
    """Of each prompt the scores, less penalties, of `advantage.reference_samples` responses of the initial policy.

    They stand in a file of the cache folder, a line for each prompt with a checksum of its own. The file's name depends
    on the model, the sampling, the reward, the penalties and the seed, and a prompt's key on its tokens and columns.
    """

    def __init__(self, config: TrainConfig, reference: Reference, scorers: Scorers, rows: Sequence[Prompt]) -> None:
        self.config, self.rows = config, rows
        self.keys = [_key(row) for row in rows]
        models = {name: model for name, model in scorers.models().items() if name.startswith("reward")}
        circumstances = {
            "reference": reference_fingerprint(reference),
            "samples": config.advantage.reference_samples,
            "generation": asdict(replace(config.generation, backend="hf", rows=None)),
            "reward": asdict(config.reward),
            "files": {name: found for name, found in digests(config, [], []).items() if name.startswith("reward.")},
            "commits": {name: getattr(getattr(m, "config", None), "_commit_hash", None) for name, m in models.items()},
            "shape": [config.objective.missing_eos_penalty, config.objective.score_clip],
            "precision": config.precision,
            "seed": config.seed,
        }
        name = hashlib.sha256(f"{KIND}\n{json.dumps(circumstances, sort_keys=True)}".encode()).hexdigest()
        self.file = cache_folder(config.rollout.reference_cache) / f"reference_scores_{name[:32]}.jsonl"
        self.known = _read(self.file)

    def of(self, prompts: PromptBatch) -> Tensor:
        """(B, S) float64, NaN of a response without a score. Raises KeyError for a prompt that `fill` has not seen."""
        return torch.tensor([self.known[self.keys[index]] for index in prompts.indices], dtype=torch.float64)

    def unsolved(self, index: int) -> bool:
        """Whether no response to this prompt scores above 0. Of one that is not known yet: no."""
        return not any(score > 0 for score in self.known.get(self.keys[index], [1.0]))

    def fill(
        self,
        learner: Learner,
        stream: PromptStream,
        iterations: int,
        attendant: Attendant,
        progress: Callable[[str, int, int], None],
    ) -> None:
        """Draw and score what the next `iterations` of `stream` ask for and is not known. `stream` stays where it is.

        An iteration's missing prompts are drawn in parts, with no more responses than a rollout has. Each part has
        random numbers of its own and is written at once: an interrupted run goes on behind it, to the same numbers.
        """
        ahead, before = copy.copy(stream), len(self.known)
        size = max(1, self.config.rollout.batch_size // self.config.advantage.reference_samples)
        _log.info("the initial policy's scores: %s prompts known from %s", f"{before:,}", self.file)
        for iteration in range(iterations):
            while True:
                start = ahead.state_dict()
                asked = {self.keys[i]: i for i in ahead.take(ahead.batch_size).indices}
                missing = [i for key, i in asked.items() if key not in self.known]
                if not missing:
                    break
                for part in range(0, len(missing), size):
                    progress("reference", iteration, iterations)
                    self._draw(learner, missing[part : part + size], attendant)
                ahead.load_state_dict(start)  # where prompts that turn out to be unsolved are passed over
        if drawn := len(self.known) - before:
            _log.info("reference scores of %s prompts drawn and kept in %s", f"{drawn:,}", self.file)

    def _draw(self, learner: Learner, indices: list[int], attendant: Attendant) -> None:
        config, models = self.config, learner.models
        generation, count = replace(config.generation, backend="hf"), config.advantage.reference_samples
        batch = collate([replace(self.rows[i], logged=None) for i in indices], models.policy.pad_token_id, copies=count)
        seed = int(hashlib.sha256(f"{self.file.name}{self.keys[indices[0]]}".encode()).hexdigest()[:12], 16)
        with own_random_states(seed, models.runtime), models.reference.active() as policy:
            with attendant.phase("generate"):
                trajectory = sample(policy, batch, generation)
                texts = finished_responses(policy, batch, trajectory, generation.stop)
            trajectory = score(learner.scorers, replace(trajectory, texts=texts), attendant)
        assert trajectory.scores is not None
        penalties = length_penalties(trajectory.response_mask, config.reward)
        scores = less_penalties(trajectory.scores.float(), trajectory.ended, config.objective, penalties)
        scores = scale_scores(scores, std=1.0, clip=config.objective.score_clip)  # as `shape_scores` does
        made = {self.keys[i]: row for i, row in zip(indices, scores.view(-1, count).tolist(), strict=True)}
        self.known |= made
        _append(self.file, made)


def _key(row: Prompt) -> str:
    """Of what policy and reward read of a row."""
    facts = [row.token_ids, row.text, row.messages, row.columns]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _read(file: Path) -> dict[str, list[float]]:
    """What the file holds; a line that is torn or damaged is left out, and drawn again."""
    found: dict[str, list[float]] = {}
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else ():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            record = json.loads(line)
            if record["sha256"] == _checksum(record["prompt"], record["scores"]):
                scores = [float("nan") if score is None else score for score in record["scores"]]
                found.setdefault(record["prompt"], scores)
    return found


def _append(file: Path, made: dict[str, list[float]]) -> None:
    """Add lines; what cannot be written is known to this run alone."""
    lines = []
    for key, scores in made.items():
        kept = [score if score == score else None for score in scores]  # JSON has no NaN
        lines.append(json.dumps({"prompt": key, "scores": kept, "sha256": _checksum(key, kept)}) + "\n")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torn = file.is_file() and not file.read_bytes().endswith(b"\n")
        with file.open("a", encoding="utf-8") as opened:
            opened.write("\n" * torn + "".join(lines))
    except OSError as error:
        _log.warning("reference scores could not be kept (%s): the next run draws them again", error)


def _checksum(key: str, scores: list[float | None]) -> str:
    return hashlib.sha256(json.dumps([key, scores]).encode()).hexdigest()[:16]
