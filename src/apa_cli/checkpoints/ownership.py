"""Check who owns an output folder before anything in it is opened for writing. Imports no torch.

A command notes in `.apa-cli` which names of a folder it writes, before it writes them. Those are its own; every other
file is the user's, and is neither written over nor deleted.
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from apa_cli.assets.resolve import PREFIX, resolve_path
from apa_cli.config.schema import TrainConfig
from apa_cli.config.sources import shown
from apa_cli.errors import UserError
from apa_cli.files import UNFINISHED, discard, files_in, remove_partial, write_text

MARKER = ".apa-cli"
RUN, EVALUATION, TABLES = "run", "evaluation", "tables"  # kinds of folders; one may be several
RUN_BEGINS = (
    *("config.yaml", "overrides.yaml", "versions.json", "run.log", "metrics.jsonl", "samples.jsonl"),
    *("checkpoints", "wandb", "tensorboard"),
)
RUN_ENDS = ("final", "plots", "report.md", "summary.json")
EVALUATION_NAMES = ("eval.json", "eval.md", "samples.jsonl", "samples.html", "over_iterations.png", "wandb")
_PICTURES = ("plots/frontier.png", "plots/iterations.png")
REPORT_NAMES = ("report.csv", "report.md", "report.html", *_PICTURES)
SWEEP_NAMES = (
    *("multirun.yaml", "optimization_results.yaml", "sweep.csv", "sweep.md", *_PICTURES),
    *(".locks", ".conflicts", ".submitit"),
)
_ALL = {RUN: (*RUN_BEGINS, *RUN_ENDS), EVALUATION: EVALUATION_NAMES, TABLES: (*REPORT_NAMES, *SWEEP_NAMES)}
_WRITTEN = {(name,) for name in _ALL[RUN]}
_MAY_BE_LINKS = ("checkpoints", "wandb", "tensorboard")  # moved to a larger disk
_WHOLE = re.compile(r"iter_\d{6,}(?:_part)?|final")
_TEMPORARY = re.compile(rf"\.({_WHOLE.pattern})\.(old|partial)")
_BESIDE = re.compile(r"\.(?:[\w.-]+)\.[0-9a-f]{8}\.partial")  # of files.write_text
_ANOTHER = "choose another folder: output_dir=DIR"


def recorded(folder: Path, kind: str) -> set[str]:
    """The names in `folder` that commands have written or are about to write, as this kind of folder."""
    names = _marker(folder).get(kind)
    return {str(name) for name in names} if isinstance(names, list) else set()


def record(folder: Path, kind: str, names: Iterable[str]) -> None:
    """Take these names, which `check_free` found to be free or recorded before."""
    kinds, before = _marker(folder), owned(folder, kind)
    if before is None:
        before = {name for name in _ALL[kind] if os.path.lexists(folder / name)}
    if before >= (now := before | set(names)):
        return
    write_text(folder / MARKER, json.dumps({**kinds, "format": 1, kind: sorted(now)}) + "\n")


def is_run(folder: Path) -> bool:
    """Whether `folder` is a run of this tool: by its marker, or as versions before the marker left one."""
    if RUN in _marker(folder):
        return True
    return (folder / "config.yaml").is_file() and "apa_cli" in _json(folder / "versions.json")


def owned(folder: Path, kind: str) -> set[str] | None:
    """The names that are the command's own; None: every name that it writes, as in a run of an older version."""
    if kind in _marker(folder):
        return recorded(folder, kind)
    return None if kind == RUN and is_run(folder) else set()


def check_free(
    folder: Path, kind: str, names: Iterable[str], *, key: str = "output_dir", remedy: str = _ANOTHER
) -> None:
    """Raise UserError if a name that the command would write exists and is not its own."""
    own = owned(folder, kind)
    for name in (*names, MARKER):
        path = folder / name
        if not os.path.lexists(path) or (name == MARKER and _marker(folder)):
            continue
        if own is not None and name not in own:
            problem = f"{shown(str(path))} is there already and was not written by this command"
            raise UserError(key, problem, f"move it away, or {remedy}")
        if path.is_symlink() and name not in _MAY_BE_LINKS:
            raise UserError(
                key, f"{shown(str(path))} is a link, which would be written through", "put a file in its place"
            )


def check_place(
    folder: Path, kind: str, inputs: Iterable[tuple[str, Path]] = (), *, key: str = "output_dir", remedy: str = _ANOTHER
) -> None:
    """Raise UserError where `folder` holds or lies in an input or another run, or can be no run's alone.

    In a run of its own an input may lie beside what the run writes. An evaluation may lie in evaluation/ of a run.
    """
    place, where = Path(os.path.realpath(folder)), shown(str(folder))
    if kind == RUN and place in (Path(place.anchor), Path(os.path.realpath(os.path.expanduser("~")))):
        raise UserError(key, f"{where} cannot be the folder of one run alone", remedy)
    ours = kind == RUN and is_run(place)

    def may_lie_in(run: Path) -> bool:
        return kind == EVALUATION and is_run(run) and place.relative_to(run).parts[:1] == (EVALUATION,)

    for outer in () if ours else (place, *place.parents):
        if is_run(outer) and not may_lie_in(outer):
            raise UserError(key, f"{where} lies in the run {shown(str(outer))}", remedy)
    for name, path in inputs:
        real = Path(os.path.realpath(path))
        if place.is_relative_to(real) and not (ours or may_lie_in(real)):
            raise UserError(key, f"{where} lies in an input, {name}={shown(str(path))}", remedy)
        if real.is_relative_to(place) and not (ours and real.relative_to(place).parts[:1] not in _WRITTEN):
            raise UserError(key, f"{where} holds an input, {name}={shown(str(path))}", remedy)


def check_run_folder(config: TrainConfig) -> None:
    """Raise UserError where config.output_dir is not a run's to write, or not alone. Creates and changes nothing."""
    folder = Path(config.output_dir)
    inputs = list(inputs_of(config))
    if config.resume not in (None, "auto") and os.path.realpath(config.resume) != os.path.realpath(folder):
        inputs.append(("resume", Path(config.resume)))
    if is_run(folder):
        inputs = [(name, path) for name, path in inputs if name != "resume"]
    check_place(folder, RUN, inputs)
    check_free(folder, RUN, _ALL[RUN])


def inputs_of(config: TrainConfig) -> Iterator[tuple[str, Path]]:
    """Key and place of every model, data file and reward function that is on this disk."""
    for name, value in _texts(config):
        leaf = name.rpartition(".")[2]
        if leaf == "function":
            module = value.rpartition(":")[0]
            value = module if module.endswith(".py") else f"{module.replace('.', '/')}.py"
        elif leaf not in ("path", "eval_path"):
            continue
        try:
            place = os.path.expanduser(resolve_path(value) if value.startswith(PREFIX) else value)
            for found in [place] if os.path.exists(place) else glob.glob(place, recursive=True):
                yield name, Path(found)
        except (UserError, OSError, ValueError, RuntimeError):  # reported when it is loaded
            continue


def recover(run_dir: Path) -> None:
    """Tidy what a crash while writing left: a folder between two names goes back to its own. Of others' none."""
    for parent in (run_dir / "checkpoints", run_dir):
        for path in sorted(parent.iterdir()) if parent.is_dir() else ():
            if _WHOLE.fullmatch(path.name) and path.is_dir():
                (path / UNFINISHED).unlink(missing_ok=True)
            elif match := _TEMPORARY.fullmatch(path.name):
                _recover(run_dir, path, parent / match[1], partial=match[2] == "partial")
            elif _BESIDE.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                path.unlink()


def _recover(run_dir: Path, path: Path, folder: Path, *, partial: bool) -> None:
    own = own_files(run_dir, path, folder)
    if partial:
        remove_partial(path)
    elif own != [] and not folder.exists():
        os.replace(path, folder)
    elif own != [] or not files_in(path):
        discard(path, files_in(folder) if own is None else own, into=folder)


def own_files(run_dir: Path, folder: Path, name: Path | None = None) -> list[str] | None:
    """What the run has written into a checkpoint or final/, the manifest last; None where that is not recorded.

    `name`: the place that `folder` is of, where it has been moved aside. Of a folder that is no checkpoint: nothing.
    """
    if (name or folder).name == "final":
        return sorted(n.removeprefix("final/") for n in recorded(run_dir, RUN) if n.startswith("final/")) or None
    listed = _json(folder / "manifest.json").get("files")
    if isinstance(listed, dict):
        return [*map(str, listed), "manifest.json"]
    return None if (folder / "trainer_state").is_dir() else []


def _texts(config: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every string of a configuration by its dotted key."""
    parts = ((f.name, getattr(config, f.name)) for f in fields(config)) if is_dataclass(config) else config.items()
    for name, value in parts:
        if isinstance(value, str):
            yield f"{prefix}{name}", value
        elif is_dataclass(value) or isinstance(value, dict):
            yield from _texts(value, f"{prefix}{name}.")


def _marker(folder: Path) -> dict[str, Any]:
    return _json(folder / MARKER) if not (folder / MARKER).is_symlink() else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
