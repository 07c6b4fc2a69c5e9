"""apa-eval, and `evaluate` for Python: judge checkpoints against the initial policy on held-out prompts.

Imports torch only once it evaluates.
"""

from __future__ import annotations

import glob
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.override_parser.overrides_parser import OverridesParser
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
    show = "--cfg" in arguments
    if show:
        place = arguments.index("--cfg")
        if arguments[place + 1 : place + 2] != ["job"]:
            raise UserError("--cfg", "shows the job alone", "write --cfg job")
        arguments = [*arguments[:place], *arguments[place + 2 :]]
    places, overrides = read_arguments(arguments)
    for line in repeated(overrides):
        say(PROGRAM, line)
    if show:
        _, config = _composed(places, overrides)
        print(OmegaConf.to_yaml(OmegaConf.create(escaped(redact(config)))), end="")
        return
    checkpoints, config = _composed(places, overrides)
    with listening(config.checkpoint.grace_seconds), _progress() as progress:
        evaluation, files = _evaluated(checkpoints, config, overrides, progress)
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
    _check_given(places)
    for line in repeated(overrides):
        warnings.warn(line, stacklevel=2)
    checkpoints, config = _composed(places, list(overrides), warnings.warn)
    evaluation, _ = _evaluated(checkpoints, config, list(overrides), lambda name, done, total: None, warnings.warn)
    return evaluation


def _say(line: str) -> None:
    say(PROGRAM, line)


def _composed(
    places: list[str], overrides: list[str], note: Callable[[str], None] = _say
) -> tuple[list[EvaluatedCheckpoint], TrainConfig]:
    checkpoints = find_checkpoints(places, lambda line: note(f"warning: {line}"))
    return checkpoints, compose_evaluation(checkpoints, overrides)


def _evaluated(
    checkpoints: list[EvaluatedCheckpoint],
    config: TrainConfig,
    overrides: list[str],
    progress: Progress,
    note: Callable[[str], None] = _say,
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
    _log_to_wandb(checkpoints, config, evaluation, folder, note)
    return evaluation, files


def read_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The values of `checkpoint=` and the other overrides. Raises UserError."""
    for argument in arguments:
        if argument.startswith("-"):
            raise UserError(argument, "unknown option", f"see {PROGRAM} --help")
    given = [argument for argument in arguments if argument.startswith(f"{KEY}=")]
    rest = [argument for argument in arguments if not argument.startswith(f"{KEY}=")]
    if not given:
        raise UserError(KEY, "not given", f"say what to judge: {PROGRAM} {KEY}=runs/mine")
    if len(given) > 1:
        raise UserError(KEY, "given twice", f"write a list: {KEY}=[runs/a,runs/b]")
    value = given[0].removeprefix(f"{KEY}=")
    if value and Path(value).expanduser().exists():
        places = [value]  # a folder whose name holds a comma or a bracket
    elif value.startswith("["):
        try:
            parsed = OverridesParser.create().parse_override(f"{KEY}={value}").value()
            if not isinstance(parsed, list) or any(isinstance(place, (list, dict)) for place in parsed):
                raise ValueError("a list within the list")
            places = [str(place) for place in parsed]
        except Exception as error:
            raise UserError(KEY, f"{value} cannot be read", "write a list such as [runs/a,runs/b]") from error
    elif Path(value).expanduser().exists() or glob.glob(str(Path(value).expanduser())):
        places = [value]  # whole: a sweep's folders have commas in their names
    else:
        places = value.split(",")
    _check_given(places)
    return places, rest


def _check_given(places: list[str]) -> None:
    if not places or not all(places):
        raise UserError(KEY, "empty", f"say what to judge: {PROGRAM} {KEY}=runs/mine")


def compose_evaluation(checkpoints: list[EvaluatedCheckpoint], overrides: list[str]) -> TrainConfig:
    """The first run's own configuration, or what `config=` names, with the overrides on top. Raises UserError."""
    base: list[str] = []
    if not any(override.startswith("config=") for override in overrides):
        runs = [checkpoint.run_dir for checkpoint in checkpoints if checkpoint.run_dir is not None]
        if not runs and not any(override.startswith("policy.path=") for override in overrides):
            raise UserError(
                "config",
                f"{_described(checkpoints[0])} belongs to no run, so nothing says what to compare it with",
                "add config=NAME or FILE, or policy.path=, reward.path= and data.path=",
            )
        base = [f"config={runs[0] / 'config.yaml'}"] if runs else ["config=own"]
        _check_same_start(runs, overrides)
    return compose.compose_train([*base, *overrides])


def _check_same_start(runs: list[Path], overrides: list[str]) -> None:
    """Runs side by side are all measured from the first one's start, which must be the start of each."""
    starts: dict[tuple[str | None, ...], str] = {}
    for run in dict.fromkeys(runs):
        config = compose.compose_train([f"config={run / 'config.yaml'}", *overrides])
        values = (config.policy.path, config.policy.revision, config.policy.adapter.path, config.reference.path)
        starts.setdefault(values, sources.shown(str(run)))
    if len(starts) > 1:
        problem = f"{' and '.join(starts.values())} started from different policies"
        raise UserError(KEY, problem, "evaluate them one at a time, or add config= to say what to compare with")


def _described(checkpoint: EvaluatedCheckpoint) -> str:
    """A name that is no folder was taken for a Hub id, which may be a slip."""
    return checkpoint.policy if Path(checkpoint.policy).is_dir() else f"{checkpoint.policy} (no folder here)"


def _output_folder(checkpoints: list[EvaluatedCheckpoint], config: TrainConfig, overrides: list[str]) -> Path:
    if any(override.startswith("output_dir=") for override in overrides):
        return Path(config.output_dir)
    runs = {checkpoint.run_dir for checkpoint in checkpoints}
    run = runs.pop() if len(runs) == 1 else None
    if run is None:
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

        def show(name: str, done: int, total: int) -> None:
            bar.update(task, description=name, completed=done, total=total or None)

        yield show


def _print_table(evaluation: Evaluation) -> None:
    from rich.console import Console
    from rich.table import Table

    from apa_cli.evaluation.eval_report import NOTES, judge_line, rows
    from apa_cli.secrets import printable

    header, cells = rows(evaluation)
    width = None if sys.stdout.isatty() else 60 + 28 * len(evaluation.policies)
    console = Console(width=width, highlight=False)
    notes = NOTES
    needed = sum(max(map(len, column)) + 1 for column in list(zip(header, *cells, strict=True))[1:])
    if needed > console.width - 30:
        notes = ("Too wide for the terminal with its 95 % intervals, which are in eval.md.", *NOTES[1:])
        cells = [[row[0], *(cell.partition(" [")[0] for cell in row[1:])] for row in cells]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left", no_wrap=bool(i), overflow="fold")
    for row in cells:
        table.add_row(*row)
    console.print(printable(f"On {evaluation.prompts}; {evaluation.decoding}, seed {evaluation.seed}"), markup=False)
    console.print(table)
    console.print(" ".join(notes), style="dim", markup=False)
    for policy in evaluation.policies:
        if policy.judge:
            console.print(f"Endpoint judge on {policy.name}: {judge_line(policy.judge)}", markup=False)


def _log_to_wandb(
    checkpoints: list[EvaluatedCheckpoint],
    config: TrainConfig,
    evaluation: Evaluation,
    folder: Path,
    note: Callable[[str], None],
) -> None:
    """The figures as a summary of the run that the checkpoints come from, if that run was logged."""
    from apa_cli.tracking.wandb_run import RUN_ID_FILE, WandbRun

    run = checkpoints[0].run_dir
    if run is None or config.tracking.wandb.mode == "disabled" or not (run / "wandb" / RUN_ID_FILE).is_file():
        return
    (folder / "wandb").mkdir(exist_ok=True)
    (folder / "wandb" / RUN_ID_FILE).write_bytes((run / "wandb" / RUN_ID_FILE).read_bytes())
    logged = WandbRun(
        replace(config.tracking.wandb, name=config.tracking.wandb.name or run.name),  # it keeps its name
        folder,
        run_config={},
        resumed=True,
        note=lambda _: None,
        warn=note,
    )
    logged.summarise(
        {
            f"apa-eval/{policy.name}/{name}": figure.value
            for policy in evaluation.policies
            if policy.run_dir in (None, run)
            for name, figure in policy.figures.items()
        }
    )
    logged.finish()


if __name__ == "__main__":
    sys.exit(main())
