"""One run from a checked configuration to its summary."""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from apa_cli.checkpoints.lock import run_lock
from apa_cli.checkpoints.manifest import listed_only
from apa_cli.checkpoints.ownership import RUN, RUN_BEGINS, check_run_folder, is_run, record, recover
from apa_cli.checkpoints.store import CheckpointStore
from apa_cli.config.schema import TrainConfig
from apa_cli.config.yaml_files import escaped
from apa_cli.data.loading import load_prompts
from apa_cli.data.prompts import Prompt, PromptSet, PromptStream, check_room
from apa_cli.errors import RunError, UserError
from apa_cli.evaluation.judge import Judgement
from apa_cli.evaluation.measures import check_best_metric
from apa_cli.files import write_text
from apa_cli.models.compiled import compile_trunks
from apa_cli.models.device import Runtime, select_runtime
from apa_cli.models.roles import Models, load_models
from apa_cli.rewards.function import check_functions
from apa_cli.rewards.http import probe_served
from apa_cli.rewards.math import check_answers
from apa_cli.rewards.preview import check_templates, how_scored, readings
from apa_cli.rewards.scorers import Scorers, by_role, load_scorers
from apa_cli.rollouts.agreement import check_agreement
from apa_cli.rollouts.sources import Logged, Sampled, Source
from apa_cli.runs.folders import SUMMARY_FILE
from apa_cli.secrets import redact
from apa_cli.tracking.log import LOGGER
from apa_cli.tracking.metrics import METRICS_FILE
from apa_cli.tracking.tracker import Tracker
from apa_cli.training.ending import conclude, save_what_there_is, write_summary
from apa_cli.training.inputs import VERSIONS_FILE, versions_of
from apa_cli.training.iteration import Learner
from apa_cli.training.logged_data import read_logged, view_of_reference
from apa_cli.training.loop import Run, check_initial, training_loop
from apa_cli.training.memory_plan import announce_estimates, announce_models, show_plan
from apa_cli.training.optimizer import check_optimizer, lost_share
from apa_cli.training.reference_scores import ReferenceScores
from apa_cli.training.resume import Resumption, begin_from, find_resumption
from apa_cli.training.state import TrainingState, initial_state, objective_of
from apa_cli.training.state_files import Snapshot, resume_state
from apa_cli.training.steward.interrupts import Interrupts
from apa_cli.training.steward.steward import Steward

CONFIG_FILE = "config.yaml"
QUIETLY = {"terminal": False}  # to run.log only, as the command prints the message


def train(config: TrainConfig, overrides: list[str], *, signals: bool = True) -> None:
    """Train in config.output_dir, from the start or resuming.

    `signals`: handle them, so that they save and stop the run; without, Ctrl-C raises KeyboardInterrupt anywhere.
    The folder becomes a run once everything is loaded, and a start that fails before that leaves nothing. Raises
    UserError, SaveError if the end could not be saved, and Interrupted after a signal. Any other error is logged to
    run.log with its traceback.
    """
    started = time.perf_counter()
    run_dir = Path(config.output_dir)
    runtime = select_runtime(config.device, config.precision)
    check_best_metric(config)
    if config.plan_only:
        show_plan(config, runtime)
        return
    check_optimizer(config.optimizer)
    check_run_folder(config)
    with Interrupts(config.checkpoint.grace_seconds, listen=signals) as interrupts, run_lock(run_dir):
        if is_run(run_dir):
            recover(run_dir)
        damaged: list[str] = []
        resumption = find_resumption(config, damaged.append)
        if resumption is not None and resumption.finished:
            print(f"{run_dir}: already finished, nothing left to do", flush=True)
            return
        probe_served(config)
        start = resumption.iteration if resumption is not None and resumption.checkpoint is not None else None
        with Tracker(config, run_dir, start_iteration=start) as tracker:
            for line in damaged:
                tracker.warn(line)
            try:
                run, state, versions = _prepare(config, runtime, resumption, tracker, interrupts)
                _begin(resumption, tracker, overrides, versions)
                after = _train(run, state, started)
                summary = conclude(run, state, after, started)
            except (KeyboardInterrupt, UserError, RunError) as error:  # with the traceback of the user's code only
                said = f"stopped: {error}"
                if isinstance(error, KeyboardInterrupt):
                    said = f"stopped by {error or 'an interrupt'}"
                logging.getLogger(LOGGER).error("%s", said, exc_info=error.__cause__, extra=QUIETLY)
                raise
            except Exception as error:
                logging.getLogger(LOGGER).error("stopped by %s", type(error).__name__, exc_info=True, extra=QUIETLY)
                if isinstance(error, FileNotFoundError) and not (run_dir / METRICS_FILE).exists():
                    raise RunError(f"{run_dir / METRICS_FILE} was deleted during the run") from error
                raise
        write_summary(run_dir, summary)


def _prepare(
    config: TrainConfig,
    runtime: Runtime,
    resumption: Resumption | None,
    tracker: Tracker,
    interrupts: Interrupts,
) -> tuple[Run, TrainingState, dict[str, Any]]:
    """Load models, prompts and, to resume, the state. Also returns the content of versions.json."""
    checkpoint = resumption.checkpoint if resumption is not None else None
    tracker.note(f"{config.method.upper()} on {config.policy.path}, {runtime.describe()}")
    modules = check_functions(config)
    check_answers(config)
    plan = announce_models(config, runtime, tracker.note)
    models = load_models(config, runtime, checkpoint=checkpoint and listed_only(checkpoint))
    scorers = load_scorers(config, models.policy, runtime, modules=modules)
    agreeing = check_agreement(models.policy, models.reference, models.value, config)
    if config.generation.top_k or config.generation.top_p < 1:
        tracker.warn(
            "generation.top_k / top_p truncate sampling, while the objective's log-probs stay full-softmax: "
            "KL and ratios are those of a distribution that was not sampled from"
        )
    if (caution := objective_of(config.objective).caution()) is not None:
        tracker.warn(caution)
    if not models.policy.eos_token_ids and not config.generation.stop:
        tracker.warn("the policy has no EOS token: every response will be max_new_tokens long")
    if config.training.compile:
        tracker.note("compiling the update's transformers")
        compile_trunks(models.policy, models.value)
    prompts, held_out, rows = _read_prompts(config, models, tracker)
    packed = config.rollout.responses_per_prompt > 1 and _packs(agreeing, config, models, rows, tracker.note)
    if plan is not None:
        announce_estimates(replace(plan, packed=packed), config, runtime, rows, tracker.note, tracker.warn)
    _log_readings(models, scorers, prompts, rows[0], tracker)
    stream = PromptStream(
        rows,
        batch_size=config.rollout.prompts,
        copies=config.rollout.responses_per_prompt,
        seed=config.seed,
        pad_token_id=models.policy.pad_token_id,
    )
    state = initial_state(config, models, stream)
    if (lost := lost_share(state.optimizer)) > 0.5:
        tracker.warn(
            f"policy.dtype=bf16: a step of the learning rate is lost in rounding on {lost:.0%} of the trained weights; "
            "leave it at auto, or raise optimizer.learning_rate"
        )
    checkpoints = CheckpointStore(tracker.run_dir, config.checkpoint, warn=tracker.warn, metrics=tracker)
    seed_everything(config.seed)
    if resumption is not None:
        for line in resume_state(resumption, state):
            tracker.note(line)
    parts = {**models.parts(), **scorers.models()}
    versions = versions_of(config, resumption, parts, runtime, prompts, held_out, tracker.warn)
    if checkpoint is not None:
        checkpoints.went_on_from(checkpoint, Snapshot(models=models, state=state))
    steward = Steward(config, models, scorers, state, tracker, interrupts)
    source: Source
    if config.rollout.offline:
        source = Logged(models, config, steward, view_of_reference(rows, models, config, steward, tracker))
    else:
        source = Sampled(models, config, steward, policy_pass=state.objective.anchor == "rollout", packed=packed)
    initial: ReferenceScores | None = None
    if config.advantage.name == "reference":
        initial = ReferenceScores(config, models.reference, scorers, rows)
        stream.skip = initial.unsolved if config.advantage.drop_unsolved else stream.skip
    scored = initial.of if initial is not None else None
    run = Run(
        learner=Learner(config=config, models=models, source=source, scorers=scorers, reference_scores=scored),
        reference_scores=initial,
        steward=steward,
        held_out=held_out.prompts,
        tracker=tracker,
        checkpoints=checkpoints,
    )
    return run, state, versions


def _packs(
    agreeing: bool, config: TrainConfig, models: Models, rows: Sequence[Prompt], note: Callable[[str], None]
) -> bool:
    """Whether forward passes compute a group's prompt once, with a line that says so."""
    longest = max(len(row.token_ids) for row in rows) + config.generation.max_new_tokens
    limit = models.longest_row()
    packed = agreeing and (limit is None or longest <= limit)
    reason = "the attention window is too short" if agreeing else "this architecture does not support packed rows"
    note("each group's prompt is computed once" if packed else f"each response's prompt is computed anew: {reason}")
    return packed


def _read_prompts(
    config: TrainConfig, models: Models, tracker: Tracker
) -> tuple[PromptSet, PromptSet, Sequence[Prompt]]:
    """Training and held-out prompts, and the rows to train on: the former, or those with logged responses."""
    started = time.perf_counter()
    prompts, held_out = load_prompts(
        config.data,
        models.policy.tokenizer,
        evaluation_prompts=config.evaluation.prompts,
        seed=config.seed,
        progress=tracker.phase,
    )
    rows = prompts.prompts
    if config.rollout.offline:
        logged = read_logged(prompts, config, models, tracker.phase)
        rows = logged.rows
        tracker.note(f"training on {logged.describe()}")
        if not held_out.prompts:
            tracker.warn("rollout.source=offline and evaluation.prompts=0: nothing is sampled, so KL is unknown")
    else:
        tracker.note(f"training on {prompts.describe()}")
    tracker.phase("")
    if (seconds := time.perf_counter() - started) > 1:
        tracker.note(f"{len(rows) + len(held_out.prompts):,} prompts read and tokenized in {seconds:.1f} s")
    T, tokenizer = config.generation.max_new_tokens, models.policy.tokenizer
    for name, (room, known) in models.limits().items():
        everything = [*rows, *held_out.prompts]
        check_room(everything, max_new_tokens=T, room=room, known=known, tokenizer=tokenizer, model=name)
    asked = config.training.iterations * config.rollout.prompts
    if prompts.drawn and asked > len(rows):
        tracker.warn(f"{prompts.drawn}, and the run asks for {asked:,} prompts: raise data.max_rows, or prompts repeat")
    if held_out.prompts:
        tracker.note(f"evaluating on {held_out.describe()}")
    for line in dict.fromkeys([*prompts.findings.lines(), *held_out.findings.lines()]):
        tracker.warn(line)
    return prompts, held_out, rows


def _begin(resumption: Resumption | None, tracker: Tracker, overrides: list[str], versions: dict[str, Any]) -> None:
    """Make the folder a run's."""
    run_dir = tracker.run_dir
    run_dir.mkdir(parents=True, exist_ok=True)
    record(run_dir, RUN, RUN_BEGINS)
    if resumption is not None:
        begin_from(resumption, run_dir)
    tracker.begin()
    # without the options of this start, such as `resume`, which are in overrides.yaml
    settings: Any = redact(replace(tracker.config, resume=None, resume_allow_changes=False, plan_only=False))
    for name, content in ((CONFIG_FILE, settings), ("overrides.yaml", redact(overrides))):
        write_text(run_dir / name, OmegaConf.to_yaml(OmegaConf.create(escaped(content))))
    write_text(run_dir / VERSIONS_FILE, json.dumps(versions, indent=2) + "\n")
    (run_dir / SUMMARY_FILE).unlink(missing_ok=True)  # a finished run that is extended


def _train(run: Run, state: TrainingState, started: float) -> Judgement | None:
    """The loop. An early end saves what was learnt."""
    earlier = state.seconds
    try:
        check_initial(run, state)
        if run.reference_scores is not None:
            left = run.config.training.iterations - state.iteration
            with run.steward.interrupts.immediate():
                run.reference_scores.fill(run.learner, state.prompts, left, run.steward, run.tracker.phase)
        return training_loop(run, state)
    except BaseException:
        state.seconds = earlier + time.perf_counter() - started
        save_what_there_is(run, state)
        raise


def seed_everything(seed: int) -> None:
    """Seed torch, and Python and NumPy for reward functions."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def _log_readings(models: Models, rewards: Scorers, prompts: PromptSet, shown: Prompt, tracker: Tracker) -> None:
    """Log what ends a response and how every model reads the texts, as errors there raise no exception."""
    if models.policy.ends:
        tracker.note(f"a response ends at {models.policy.describe_ends()}")
    if models.policy.tokenizer.chat_template and not prompts.chat:
        tracker.note(
            "the policy has a chat template, and these prompts do not go through it; "
            "data.format=chat (HH dialogues: hh_chat) if they should"
        )
    scorers = {**by_role("reward model", rewards.reward), **by_role("evaluator", rewards.evaluator)}
    scorers = {name: scorer for name, scorer in scorers.items() if scorer is not None}
    check_templates(prompts, scorers)
    for line in readings(shown, models.policy, scorers):
        logging.getLogger(LOGGER).info("%s", line, extra=QUIETLY)
    for line in how_scored(prompts, models.policy, scorers):
        tracker.note(line)
