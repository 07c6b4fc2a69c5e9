"""apa-report: tables, pictures and one HTML page from any runs, finished or not. Imports no torch, touches no run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from apa_cli import __version__
from apa_cli.checkpoints.ownership import REPORT_NAMES, TABLES, check_free, check_place, record
from apa_cli.commands.environment import check_folder, command
from apa_cli.config.sources import shown
from apa_cli.errors import UserError

PROGRAM = "apa-report"
DESCRIPTION = "Tables, pictures and one HTML page from any runs of apa-train, finished or still going."
EPILOG = """\
RUN is a run's folder, a folder that holds runs (a sweep), or a pattern in quotes. Nothing in the runs is changed.

Examples
  apa-report sweeps/2026-01-31_12-00-00-000000         a sweep: the report goes into its folder
  apa-report runs/ppo runs/apa                         two runs side by side; into runs/, which both lie in
  apa-report 'runs/2026-01-*' --output january         a pattern, and a folder for the report
  apa-report runs/ppo                                  one run, while it trains: into report/

What it writes
  report.html        everything in one file to send or open anywhere: tables that sort, pictures, responses before and
                     after; a text box filters the runs
  report.csv         one row a run: status, seed, objective, KL knob, learning rate, final figures
  report.md          mean ± half of a 95 % interval over seeds (Student's t), for each setting
  plots/             frontier.png: reward against KL; iterations.png: reward, KL and entropy over training

Runs that differ in the seed alone make one setting; settings of one objective that differ in its KL knob
(objective.kl_lambda, for ppo objective.kl_coef) make one line of the frontier.

Exit code: 0 done, 2 your input is wrong (one line says what), 1 anything else, 130 interrupted.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError("", message, f"see {PROGRAM} --help")


@command(PROGRAM)
def main(argv: list[str]) -> None:
    """Run the command."""
    parser = _Parser(
        prog=PROGRAM, description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run's folder, a folder of runs, or a pattern")
    parser.add_argument("-o", "--output", metavar="DIR", help="folder of the report (default: see the examples)")
    parser.add_argument("--title", help="heading of the report")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    arguments = parser.parse_args(argv)

    from apa_cli.runs.folders import find_runs, read_run
    from apa_cli.runs.html_page import write_page
    from apa_cli.runs.tables import Overview, terminal_lines, write_tables

    folders = find_runs(arguments.runs)
    runs = [read_run(folder) for folder in folders]
    if not any(run.rows or run.reason for run in runs):
        where = arguments.runs[0] if len(runs) == 1 else "RUN"
        raise UserError(where, "no metrics yet", "wait for the first iteration, or name other runs")
    output = Path(arguments.output).expanduser() if arguments.output else _default_output(arguments.runs, folders)
    _check_output(output, folders)
    output.mkdir(parents=True, exist_ok=True)
    record(output, TABLES, REPORT_NAMES)
    title = arguments.title or (runs[0].name if len(runs) == 1 else f"{len(runs)} runs")
    overview = Overview(title=title, folder=output, runs=runs)
    tables, pictures = write_tables(overview, "report")
    page = output / "report.html"
    write_page(overview, pictures, page)
    print("\n".join(terminal_lines(overview, [*tables, *pictures], page=page)), flush=True)


def _default_output(places: Sequence[str], folders: Sequence[Path]) -> Path:
    """A folder of runs that was named, the folder that several runs lie in, otherwise report/."""
    parents = {folder.resolve().parent for folder in folders}
    if len(places) == 1 and Path(places[0]).is_dir() and Path(places[0]).resolve() != folders[0].resolve():
        return Path(places[0])
    if len(folders) > 1 and len(parents) == 1:
        return folders[0].parent
    return Path("report")


def _check_output(output: Path, folders: Sequence[Path]) -> None:
    place = output.resolve()
    for folder in folders:
        if place == folder.resolve() or folder.resolve() in place.parents:
            raise UserError("--output", f"{shown(str(output))} is a run's folder", "name another: --output DIR")
    check_folder(str(output), "--output", "--output DIR")
    check_place(output, TABLES, key="--output", remedy="name another: --output DIR")
    check_free(output, TABLES, REPORT_NAMES, key="--output", remedy="name another: --output DIR")


if __name__ == "__main__":
    sys.exit(main())
