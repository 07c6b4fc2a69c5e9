"""apa-eval, and `evaluate` for Python: judge checkpoints against the initial policy on held-out prompts.

Imports torch only once it evaluates.
"""

from __future__ import annotations

import glob
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from apa_cli import __version__
from apa_cli.checkpoints.ownership import EVALUATION, EVALUATION_NAMES, check_free, check_place, inputs_of, record
from apa_cli.commands.environment import check_folder, command, say, share_the_processor
from apa_cli.config import compose, sources
from apa_cli.config.overrides import repeated
from apa_cli.config.schema import TrainConfig
from apa_cli.config.yaml_files import escaped
from apa_cli.errors import UserError
from apa_cli.evaluation.checkpoint_paths import KEY, EvaluatedCheckpoint, find_checkpoints
from apa_cli.secrets import redact
from apa_cli.watchdog import listening

if TYPE_CHECKING:
    from apa_cli.data.table import Progress
    from apa_cli.evaluation.evaluate_checkpoints import Evaluation

PROGRAM = "apa-eval"

HELP = """\
apa-eval: judge checkpoints against the policy that training started from

Generates on held-out prompts and reports, each with a 95 % interval over prompts: the training reward, a separate
evaluator, win, tie and lose rates against the initial policy, exact KL to it with its k1 and k3 estimates, entropy,
length, share ended by EOS, distinct-1/2, share of different responses, repetition.

Examples
  apa-eval checkpoint=runs/mine                                  a run: its own config says base, reward and data
  apa-eval checkpoint=runs/mine/checkpoints/iter_000050          one checkpoint of it
  apa-eval 'checkpoint=runs/mine/checkpoints/*'                  all of them: one table, a picture over iterations
  apa-eval checkpoint=[runs/a,runs/b] evaluation.prompts=256     several runs, on more prompts
  apa-eval checkpoint=runs/mine evaluation.decoding=greedy
  apa-eval checkpoint=path/to/model config=mine.yaml             a Hugging Face or PEFT folder, a model on the Hub
  apa-eval checkpoint=runs/mine --cfg job                        show the whole configuration and judge nothing
  apa-eval checkpoint=runs/mine evaluation.judge.base_url=http://127.0.0.1:8000/v1 evaluation.judge.model=NAME

Keys
  checkpoint      what to judge (required)
  config=NAME     recipe or YAML file to take base, reward and data from, instead of the run's own config.yaml
  output_dir=DIR  where to write (default: evaluation/ in the run's folder, or evaluations/TIME)
  evaluation.*    prompts, decoding (sampled, greedy), reward.* (the separate evaluator), resamples, judge.*
  any other key of apa-train, such as generation.temperature, data.eval_path or seed

Writes eval.json, eval.md, samples.jsonl, samples.html and, for several checkpoints of a run, over_iterations.png.
The same seed gives the same figures.

Exit codes: 0 done; 2 something you gave is wrong (one line says what); 1 anything else; 130 interrupted.
"""


@command(PROGRAM)
def main(arguments: list[str]) -> None:
    """Run the command."""
    share_the_processor()
    if not arguments or any(argument in ("-h", "--help") for argument in arguments):
        print(HELP, end="", flush=True)
        return
    if "--version" in arguments:
        print(f"{PROGRAM} {__version__}")
        return
    if show := "--cfg" in arguments:
        place = arguments.index("--cfg")
        if arguments[place + 1 : place + 2] != ["job"]:
            raise UserError("--cfg", "shows the job alone", "write --cfg job")
        arguments = [*arguments[:place], *arguments[place + 2 :]]
    places, overrides = read_arguments(arguments)
    for line in repeated(overrides):
        say(PROGRAM, line)
    note = partial(say, PROGRAM)
    checkpoints, config = _composed(places, overrides, note)
    if show:
        print(OmegaConf.to_yaml(OmegaConf.create(escaped(redact(config)))), end="")
        return
    with listening(config.checkpoint.grace_seconds), _progress() as progress:
        evaluation, files = _evaluated(checkpoints, config, overrides, progress, note)
    _print_table(evaluation)
    for file in files:
        print(f"{file.name:<20}{sources.shown(str(file))}")


def evaluate(checkpoint: str | Path | Sequence[str | Path], *overrides: str) -> Evaluation:
    """Judge checkpoints as `apa-eval checkpoint=CHECKPOINT OVERRIDES...` does, and return what eval.json holds.

    `checkpoint` is a run's folder, a checkpoint in one, a pattern with `*`, a model, or a list of such. All that the
    command writes is written, to the `folder` that is returned, and nothing is printed.

    Returns `policies`, the initial one first, each with its `figures` by name: `value`, `low` and `high`.

    Raises UserError for what the user can mend.

    >>> from apa_cli import evaluate
    >>> judged = evaluate("runs/mine", "evaluation.prompts=256")  # doctest: +SKIP
    >>> judged.policies[-1].figures["reward"].value, judged.folder  # doctest: +SKIP
    """
    places = [str(place) for place in ([checkpoint] if isinstance(checkpoint, (str, Path)) else checkpoint)]
    for line in repeated(overrides):
        warnings.warn(line, stacklevel=2)
    checkpoints, config = _composed(places, list(overrides), warnings.warn)
    return _evaluated(checkpoints, config, list(overrides), lambda name, done, total: None, warnings.warn)[0]


def _composed(
    places: list[str], overrides: list[str], note: Callable[[str], None]
) -> tuple[list[EvaluatedCheckpoint], TrainConfig]:
    if not places or not all(places):
        raise UserError(KEY, "empty", f"say what to judge: {PROGRAM} {KEY}=runs/mine")
    checkpoints = find_checkpoints(places, lambda line: note(f"warning: {line}"))
    return checkpoints, compose_evaluation(checkpoints, overrides)


def _evaluated(
    checkpoints: list[EvaluatedCheckpoint],
    config: TrainConfig,
    overrides: list[str],
    progress: Progress,
    note: Callable[[str], None],
) -> tuple[Evaluation, list[Path]]:
    """The evaluation and the files that it has written. Raises UserError before the work begins."""
    folder = _output_folder(checkpoints, config, overrides)
    check_folder(str(folder))
    evaluated = [Path(place) for c in checkpoints for place in (c.policy, c.run_dir) if place and Path(place).is_dir()]
    check_place(folder, EVALUATION, [*inputs_of(config), *((KEY, place) for place in evaluated)])
    check_free(folder, EVALUATION, EVALUATION_NAMES)
    if config.evaluation.decoding == "greedy":
        note("note: KL and its estimates are those along the greedy responses, not of what the policy samples")
    elif config.generation.top_k or config.generation.top_p < 1:
        note("note: generation.top_k / top_p truncate sampling, while KL and entropy are of the full softmax")
    from apa_cli.evaluation.eval_report import write_evaluation
    from apa_cli.evaluation.evaluate_checkpoints import evaluate_checkpoints

    with warnings.catch_warnings():
        if not sys.warnoptions:  # the libraries' own, which training keeps in its log; python -W shows them
            warnings.simplefilter("ignore")
        evaluation = replace(evaluate_checkpoints(checkpoints, config, progress), folder=folder)
    folder.mkdir(parents=True, exist_ok=True)
    record(folder, EVALUATION, EVALUATION_NAMES)
    files = write_evaluation(evaluation, folder)
    _log_to_wandb(checkpoints[0].run_dir, config, evaluation, folder, note)
    return evaluation, files


def read_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The values of `checkpoint=` and the other overrides. Raises UserError."""
    for argument in arguments:
        if argument.startswith("-"):
            raise UserError(argument, "unknown option", f"see {PROGRAM} --help")
    given = [word.removeprefix(f"{KEY}=") for word in arguments if word.startswith(f"{KEY}=")]
    rest = [word for word in arguments if not word.startswith(f"{KEY}=")]
    if len(given) != 1:
        problem = "given twice" if given else "not given"
        remedy = f"write a list: {KEY}=[runs/a,runs/b]" if given else f"say what to judge: {PROGRAM} {KEY}=runs/mine"
        raise UserError(KEY, problem, remedy)
    value, place = given[0], Path(given[0]).expanduser()
    if value and (place.exists() or (glob.glob(str(place)) and not value.startswith("["))):
        return [value], rest  # whole: a sweep's folders have commas in their names
    if value.startswith("["):
        if not value.endswith("]"):
            raise UserError(KEY, f"{value} does not end its list", "write a list such as [runs/a,runs/b]")
        value = value[1:-1]
    return [place.strip().strip("'\"") for place in value.split(",")], rest


def compose_evaluation(checkpoints: list[EvaluatedCheckpoint], overrides: list[str]) -> TrainConfig:
    """The first run's own configuration, or what `config=` names, with the overrides on top. Raises UserError."""
    if any(override.startswith("config=") for override in overrides):
        return compose.compose_train(overrides)
    runs = list(dict.fromkeys(checkpoint.run_dir for checkpoint in checkpoints if checkpoint.run_dir is not None))
    if not runs:
        if not any(override.startswith("policy.path=") for override in overrides):
            policy = checkpoints[0].policy
            if not Path(policy).is_dir():
                policy += " (no folder here)"  # it was taken for a Hub id, which may be a slip
            problem = "belongs to no run, so nothing says what to compare it with"
            remedy = "add config=NAME or FILE, or policy.path=, reward.path= and data.path="
            raise UserError("config", f"{policy} {problem}", remedy)
        return compose.compose_train(["config=own", *overrides])
    # Runs side by side are all measured from the first one's start, which must be the start of each.
    configs = [compose.compose_train([f"config={run / 'config.yaml'}", *overrides]) for run in runs]
    starts = [(c.policy.path, c.policy.revision, c.policy.adapter.path, c.reference.path) for c in configs]
    for run, start in zip(runs, starts, strict=True):
        if start != starts[0]:
            problem = f"{sources.shown(str(runs[0]))} and {sources.shown(str(run))} started from different policies"
            raise UserError(KEY, problem, "evaluate them one at a time, or add config= to say what to compare with")
    return configs[0]


def _output_folder(checkpoints: list[EvaluatedCheckpoint], config: TrainConfig, overrides: list[str]) -> Path:
    if any(override.startswith("output_dir=") for override in overrides):
        return Path(config.output_dir)
    run = checkpoints[0].run_dir
    if run is None or any(checkpoint.run_dir != run for checkpoint in checkpoints):
        return Path("evaluations") / time.strftime("%Y-%m-%d_%H-%M-%S")
    name = checkpoints[0].name if len(checkpoints) == 1 else "checkpoints"
    return run / "evaluation" / (name if config.evaluation.decoding == "sampled" else f"{name}-greedy")


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on the terminal; silent where there is none."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda name, done, total: bar.update(task, description=name, completed=done, total=total or None)


def _print_table(evaluation: Evaluation) -> None:
    from apa_cli.evaluation.eval_report import NOTES, judge_line, rows
    from apa_cli.secrets import printable
    from apa_cli.tracking.pages import aligned

    header, cells = rows(evaluation)
    notes: tuple[str, ...] = NOTES
    table = aligned([header, *cells])
    if sys.stdout.isatty() and len(table[0]) > shutil.get_terminal_size().columns:
        notes = ("Too wide for the terminal with its 95 % intervals, which are in eval.md.", *NOTES[1:])
        table = aligned([header, *([cell.partition(" [")[0] for cell in row] for row in cells)])
    judged = [f"Endpoint judge on {p.name}: {judge_line(p.judge)}" for p in evaluation.policies if p.judge]
    title = f"On {evaluation.prompts}; {evaluation.decoding}, seed {evaluation.seed}"
    print(printable("\n".join([title, *table, " ".join(notes), *judged])))


def _log_to_wandb(
    run: Path | None, config: TrainConfig, evaluation: Evaluation, folder: Path, note: Callable[[str], None]
) -> None:
    """The figures as a summary of the run that the checkpoints come from, if that run was logged."""
    from apa_cli.tracking.wandb_run import RUN_ID_FILE, WandbRun

    if run is None or config.tracking.wandb.mode == "disabled" or not (run / "wandb" / RUN_ID_FILE).is_file():
        return
    (folder / "wandb").mkdir(exist_ok=True)
    (folder / "wandb" / RUN_ID_FILE).write_bytes((run / "wandb" / RUN_ID_FILE).read_bytes())
    settings = replace(config.tracking.wandb, name=config.tracking.wandb.name or run.name)  # it keeps its name
    logged = WandbRun(settings, folder, run_config={}, resumed=True, note=lambda _: None, warn=note)
    figures = {
        f"apa-eval/{policy.name}/{name}": figure.value
        for policy in evaluation.policies
        if policy.run_dir in (None, run)
        for name, figure in policy.figures.items()
    }
    logged.summarise(figures)
    logged.finish()


if __name__ == "__main__":
    sys.exit(main())
