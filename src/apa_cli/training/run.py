"""One run from configuration to summary: what `apa-train` calls once the configuration is known to be sound."""

from __future__ import annotations

import difflib
import json
import logging
import math
import os
import platform
import random
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from apa_cli import __version__
from apa_cli.checkpoints.export import export_final
from apa_cli.checkpoints.store import CheckpointStore
from apa_cli.config.schema import TrainConfig
from apa_cli.data.loading import load_prompts
from apa_cli.data.prompts import PromptStream, check_room
from apa_cli.errors import UserError
from apa_cli.evaluation.judge import Judgement
from apa_cli.evaluation.measures import LABELS
from apa_cli.models.device import select_runtime
from apa_cli.models.roles import Models, load_models
from apa_cli.tracking.log import LOGGER
from apa_cli.tracking.metrics import read_metrics
from apa_cli.tracking.report import Outcome, SamplePair, Summary
from apa_cli.tracking.secrets import redact
from apa_cli.tracking.tracker import Tracker
from apa_cli.training.loop import training_loop
from apa_cli.training.state import initial_state

CONFIG_FILE = "config.yaml"
SUMMARY_FILE = "summary.json"
QUIETLY = {"terminal": False}  # to run.log alone: the command prints the one line


def train(config: TrainConfig, overrides: list[str]) -> None:
    """Run `config` in its output_dir and leave there all that DESIGN.md's run folder holds.

    Raises UserError for what the user can mend; the traceback of anything else is in run.log.
    """
    started = time.perf_counter()
    run_dir = Path(config.output_dir)
    if (run_dir / CONFIG_FILE).exists():
        raise UserError("output_dir", f"{run_dir} already holds a run", "choose another folder")
    runtime = select_runtime(config.device, config.precision)
    check_best_metric(config)
    with Tracker(config, run_dir) as tracker:
        try:
            _write_settings(run_dir, config, overrides)
            tracker.note(f"{config.objective.name.upper()} on {config.policy.path}, {runtime.describe()}")
            models = load_models(config, runtime)
            _write_versions(run_dir, models)
            for line in models.describe():
                tracker.note(line)
            _warn(config, models, tracker)
            prompts, held_out = load_prompts(
                config.data, models.policy.tokenizer, evaluation_prompts=config.evaluation.prompts, seed=config.seed
            )
            every = [*prompts.prompts, *held_out.prompts]
            check_room(every, max_new_tokens=config.generation.max_new_tokens, room=models.policy.room)
            tracker.note(f"training on {prompts.describe()}")
            if held_out.prompts:
                tracker.note(f"evaluating on {held_out.describe()}")
            stream = PromptStream(
                prompts.prompts,
                batch_size=config.rollout.batch_size,
                seed=config.seed,
                pad_token_id=models.policy.pad_token_id,
            )
            state = initial_state(config, models, stream)
            seed_everything(config.seed)
            checkpoints = CheckpointStore(run_dir, config.checkpoint)
            judged = training_loop(config, models, state, held_out.prompts, tracker, checkpoints)
            tracker.phase("save")
            before, after = (judged[0].metrics, judged[1].metrics) if judged else ({}, {})
            final = export_final(models.policy, run_dir / "final", config, before, after)
            summary = _summary(config, run_dir, final, judged, time.perf_counter() - started)
            tracker.finish(summary)
        except UserError as error:  # of the user's own code the traceback, of ours none
            logging.getLogger(LOGGER).error("stopped: %s", error, exc_info=error.__cause__, extra=QUIETLY)
            raise
        except Exception as error:
            logging.getLogger(LOGGER).error("stopped by %s", type(error).__name__, exc_info=True, extra=QUIETLY)
            raise
    write_summary(run_dir, summary)


def seed_everything(seed: int) -> None:
    """torch for sampling and shuffling; Python and numpy for what a reward function may draw."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def check_best_metric(config: TrainConfig) -> None:
    """Raise UserError when checkpoint.best_metric is nothing that evaluations measure."""
    metric = config.checkpoint.best_metric
    names = [f"eval/{name}" for name in LABELS]
    if metric is not None and metric not in names:
        near = difflib.get_close_matches(metric, names, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(names)}"
        raise UserError("checkpoint.best_metric", f"{metric} is not measured", remedy)


def _summary(
    config: TrainConfig, run_dir: Path, final: Path, judged: tuple[Judgement, Judgement] | None, seconds: float
) -> Summary:
    before, after = judged or (None, None)
    pairs = []
    if before is not None and after is not None:
        pairs = [
            SamplePair(prompt=b.prompt, before=b.response, after=a.response, score_before=b.score, score_after=a.score)
            for b, a in zip(before.responses[:2], after.responses[:2], strict=True)
        ]
        outcomes = [Outcome.from_evaluation(judgement.metrics) for judgement in (before, after)]
        measured_on = "held-out prompts"
    else:
        rows = read_metrics(run_dir)
        outcomes = [Outcome.from_rollout(row) for row in (rows[0], rows[-1])]
        measured_on = "the first and the last rollout"
    return Summary(
        before=outcomes[0],
        after=outcomes[1],
        samples=pairs,
        measured_on=measured_on,
        iterations=config.training.iterations,
        seconds=seconds,
        run_dir=run_dir,
        final_dir=final,
    )


def write_summary(run_dir: Path, summary: Summary) -> None:
    """summary.json, whole or not at all: where it lies, the run is finished, and a sweep does not run it again."""
    facts = {"iterations": summary.iterations, "seconds": summary.seconds, "measured_on": summary.measured_on}
    outcomes = {
        when: {
            name: value if value is None or math.isfinite(value) else None for name, value in asdict(outcome).items()
        }
        for when, outcome in (("before", summary.before), ("after", summary.after))
    }
    beside = run_dir / f"{SUMMARY_FILE}.tmp"
    beside.write_text(json.dumps({**facts, **outcomes}, indent=2) + "\n", encoding="utf-8")
    os.replace(beside, run_dir / SUMMARY_FILE)


def _warn(config: TrainConfig, models: Models, tracker: Tracker) -> None:
    generation = config.generation
    if generation.top_k or generation.top_p < 1:
        tracker.warn(
            "generation.top_k / top_p truncate sampling, while the objective's log-probs stay full-softmax: "
            "KL and ratios are those of a distribution that was not sampled from"
        )
    if not models.policy.eos_token_ids and not generation.stop:
        tracker.warn("the policy has no EOS token: every response will be max_new_tokens long")


def _write_settings(run_dir: Path, config: TrainConfig, overrides: list[str]) -> None:
    resolved: Any = redact(config)
    OmegaConf.save(OmegaConf.create(resolved), run_dir / CONFIG_FILE)
    OmegaConf.save(OmegaConf.create(redact(overrides)), run_dir / "overrides.yaml")


def _write_versions(run_dir: Path, models: Models) -> None:
    versions = {
        "apa_cli": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "peft": version("peft"),
        "device": models.runtime.describe(),
        "policy_commit": getattr(models.policy.model.config, "_commit_hash", None),
    }
    (run_dir / "versions.json").write_text(json.dumps(versions, indent=2) + "\n", encoding="utf-8")
