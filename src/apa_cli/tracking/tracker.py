"""Report the progress of a run to files, the terminal, wandb and TensorBoard."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

from apa_cli.config.schema import TrainConfig
from apa_cli.secrets import redact
from apa_cli.tracking.lines import DiskTrouble, JsonLines, PatientFile
from apa_cli.tracking.log import LOG_FILE, LOGGER, open_run_log
from apa_cli.tracking.metrics import METRICS_FILE
from apa_cli.tracking.plots import draw_run
from apa_cli.tracking.report import Summary, summary_lines, write_report
from apa_cli.tracking.samples import SAMPLES_FILE, Sample
from apa_cli.tracking.tensorboard_run import TensorBoardRun
from apa_cli.tracking.terminal import Terminal, choose_console, columns_of
from apa_cli.tracking.wandb_run import WandbRun

_log = logging.getLogger(LOGGER)


class Tracker:
    """Writes metrics, samples and messages to the run's folder, to its trackers and to the terminal. A context manager.

    Until `begin` nothing is written but run.log, and that only where there is one: messages wait for it.
    A run that goes on passes the iteration that it starts from: lines of later ones are dropped, to be written again.
    """

    def __init__(self, config: TrainConfig, run_dir: Path, *, start_iteration: int | None = None) -> None:
        self.config, self.run_dir = config, run_dir
        self._start_iteration = start_iteration
        self._held: dict[int, dict[str, float]] = {}
        self._metrics: JsonLines  # both set in begin()
        self._samples: JsonLines
        self._written: list[PatientFile] = []
        held_out = config.evaluation.prompts > 0
        with ExitStack() as opened:
            self._trouble = DiskTrouble()
            self._terminal = Terminal(
                choose_console(config.tracking.console),
                iterations=config.training.iterations,
                start_iteration=start_iteration or 0,
                columns=columns_of(
                    held_out=held_out,
                    evaluator=held_out and config.evaluation.reward.given,
                    logged=config.rollout.offline,
                ),
            )
            of_before = run_dir if (run_dir / LOG_FILE).is_file() else None
            self._run_log = opened.enter_context(open_run_log(of_before, self._terminal, self._trouble))
            opened.enter_context(self._terminal)
            self._wandb = WandbRun(
                config.tracking.wandb,
                run_dir,
                run_config=redact(config),
                resumed=start_iteration is not None,
                note=self.note,
                warn=self.warn,
            )
            self._tensorboard = TensorBoardRun(run_dir) if config.tracking.tensorboard else None
            self._opened = opened.pop_all()

    def begin(self) -> Tracker:
        """Open the files of the run. Raises UserError if a resumed run's cannot be read."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        start, trouble = self._start_iteration, self._trouble
        self._samples = JsonLines(self.run_dir / SAMPLES_FILE, start_iteration=start, trouble=trouble)
        self._metrics = JsonLines(self.run_dir / METRICS_FILE, start_iteration=start, trouble=trouble)
        self._written = [self._metrics, self._samples, self._run_log.open(self.run_dir / LOG_FILE)]
        if self._tensorboard is not None:
            self._written.append(self._tensorboard.begin(self._metrics.read(), start, trouble))
        return self

    def note(self, message: str) -> None:
        """One line to the terminal, above the live table, and to run.log."""
        _log.info(message)

    def warn(self, message: str) -> None:
        """One line that a quiet console shows too."""
        _log.warning(message)

    def phase(self, name: str, done: int = 0, total: int = 0) -> None:
        """What is being done (read, generate, update, …) and how far it is, for the live table."""
        self._terminal.phase(name, done, total)

    def log(self, iteration: int, metrics: Mapping[str, float], samples: Sequence[Sample] = ()) -> None:
        """All metrics of one iteration, with those of its evaluation if there is one."""
        self._sample(iteration, samples, "training")
        self._write(iteration, {**self._held.pop(iteration, {}), **metrics}, samples)

    def log_evaluation(self, iteration: int, metrics: Mapping[str, float], samples: Sequence[Sample]) -> None:
        """An evaluation; the names begin with `eval/`.

        Before training it is a line of its own. Later it is held until `log` of the same iteration, whose line
        it joins.
        """
        self._sample(iteration, samples, "evaluation")
        if iteration == 0:
            self._write(iteration, metrics, samples)
        else:
            self._held[iteration] = dict(metrics)
            self._wandb.keep(iteration, samples)

    def sync(self) -> bool:
        """Flush metrics and samples to the disk. Returns whether that succeeded."""
        written = [file.write(sync=True) for file in self._written]
        return written[0] and written[1]

    def copy_to(self, folder: Path) -> None:
        """Copy metrics and samples, including lines that a full disk has refused."""
        for name, lines in ((METRICS_FILE, self._metrics), (SAMPLES_FILE, self._samples)):
            (folder / name).write_bytes(lines.content())

    def metrics(self) -> list[dict[str, float | None]]:
        """The lines of metrics.jsonl, including those that a full disk has refused."""
        return self._metrics.read()

    def finish(self, summary: Summary) -> None:
        """Write plots and report.md, and print the summary. A plot that fails is a warning."""
        self._flush_held()
        self._terminal.stop()
        try:
            if not summary.plots:
                summary = replace(summary, plots=draw_run(self.run_dir))
            write_report(self.run_dir, summary, self.config)
        except Exception as error:
            _log.warning("no pictures or report: %s", error)
            _log.debug("", exc_info=True)
        for when, outcome in (("before", summary.before), ("after", summary.after)):
            figures = asdict(outcome)
            parts = {f"reward/{name}": value for name, value in figures.pop("parts").items()}
            self._wandb.summarise({f"{when}/{name}": value for name, value in (figures | parts).items()})
        lines = summary_lines(summary)
        for line in lines:
            _log.info(line, extra={"terminal": False})
        self._terminal.lines(lines)

    def close(self, exit_code: int = 0, *, seconds: float | None = None) -> None:
        """End wandb within a bounded time, close the files, give loggers and terminal back. May be called twice.

        `seconds`: the bound, where the run has to end sooner than wandb's own.
        """
        with self._opened.pop_all():
            self._terminal.stop()
            try:
                self._flush_held()
            finally:
                self._wandb.finish(exit_code, seconds=seconds)
                for file in self._written:
                    if not file.write() and file.problem is not None:
                        lines = file.pending.count(b"\n")
                        lost = "1 line" if lines == 1 else f"{lines} lines"
                        self.warn(f"{lost} of {file.path} could not be written ({file.problem.strerror}), and are lost")

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        deadline = getattr(error, "deadline", None)  # after a signal
        seconds = None if deadline is None else max(0.0, deadline - time.monotonic() - 1.0)
        self.close(0 if kind is None else 130 if issubclass(kind, KeyboardInterrupt) else 1, seconds=seconds)

    def _sample(self, iteration: int, samples: Sequence[Sample], source: str) -> None:
        """Lines of samples.jsonl: `source` is `training` (of a rollout) or `evaluation` (to a held-out prompt)."""
        optional = ("evaluator", "parts")
        rows = ({"iteration": iteration, "source": source, **asdict(sample)} for sample in samples)
        self._samples.add(*({k: v for k, v in row.items() if k not in optional or v not in (None, {})} for row in rows))

    def _write(self, iteration: int, metrics: Mapping[str, float], samples: Sequence[Sample]) -> None:
        self._metrics.add({"iteration": iteration, **{k: v for k, v in metrics.items() if k != "iteration"}})
        evaluated = any(name.startswith("eval/") for name in metrics)
        self._wandb.log(iteration, metrics, samples, table=evaluated or iteration == self.config.training.iterations)
        if self._tensorboard is not None:
            self._tensorboard.log(iteration, metrics)
        self._terminal.row(iteration, metrics)
        if _log.isEnabledFor(logging.INFO):
            _log.info("%s", self._terminal.words(iteration, metrics), extra={"terminal": False})

    def _flush_held(self) -> None:
        """Write evaluations whose iteration was interrupted."""
        for iteration in sorted(self._held):
            self._write(iteration, self._held.pop(iteration), ())
