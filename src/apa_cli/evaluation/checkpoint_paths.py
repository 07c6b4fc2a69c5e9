"""Resolve `checkpoint=`: a run, one of its checkpoints, its final/, any model or adapter folder, or a Hub id.

Whatever it is comes down to a folder with a policy in it and, where it belongs to a run, that run. Imports no torch.
"""

from __future__ import annotations

import glob
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from apa_cli.checkpoints.find import checkpoint_iteration, checkpoints_in, followed, pointed_to
from apa_cli.checkpoints.manifest import check_manifest, warn_of_unlisted
from apa_cli.config.sources import shown
from apa_cli.errors import UserError

KEY = "checkpoint"
_OF_A_RUN = ("config.yaml", "metrics.jsonl")


@dataclass(frozen=True, kw_only=True)
class EvaluatedCheckpoint:
    name: str  # in tables
    policy: str  # folder of the weights, or a Hub id
    is_adapter: bool
    run_dir: Path | None
    iteration: int | None  # finished iterations, if known


def find_checkpoints(places: Sequence[str], warn: Callable[[str], None] = lambda _: None) -> list[EvaluatedCheckpoint]:
    """All that `places` name, patterns expanded, in the order of their iterations. Raises UserError.

    Files of a checkpoint that its manifest does not list are named to `warn`.
    """
    found: dict[str, EvaluatedCheckpoint] = {}
    for place in places:
        for path in _expand(place):
            checkpoint = _read(path, warn)
            found.setdefault(checkpoint.policy, checkpoint)
    runs = {checkpoint.run_dir for checkpoint in found.values() if checkpoint.run_dir is not None}
    ordered = sorted(found.values(), key=lambda checkpoint: (checkpoint.iteration is None, checkpoint.iteration or 0))
    if len(runs) > 1:
        ordered = [replace(c, name=f"{c.run_dir.name}/{c.name}") if c.run_dir else c for c in ordered]
    names = Counter(checkpoint.name for checkpoint in ordered)
    return [replace(c, name=shown(c.policy)) if names[c.name] > 1 else c for c in ordered]


def _expand(place: str) -> list[str]:
    if not any(sign in place for sign in "*?[") or Path(place).expanduser().exists():
        return [place]
    matches = sorted(match for match in glob.glob(str(Path(place).expanduser())) if Path(match).is_dir())
    if not matches:
        raise UserError(KEY, f"nothing matches {place}", "give a run's checkpoints, such as runs/mine/checkpoints/*")
    return matches


def _read(place: str, warn: Callable[[str], None]) -> EvaluatedCheckpoint:
    folder = followed(Path(place).expanduser())
    if not folder.exists():
        if place.startswith((".", "/", "~")) or place.count("/") > 1 or (Path(place).parent.is_dir() and "/" in place):
            raise UserError(KEY, f"no folder {place}", "give a run, a checkpoint of it, or a model folder")
        return EvaluatedCheckpoint(name=place, policy=place, is_adapter=False, run_dir=None, iteration=None)
    if folder.is_file():
        raise UserError(KEY, f"{place} is a file", "give the folder it is in")
    folder = folder.resolve()
    if (folder / "trainer_state").is_dir() or folder.name.endswith(".partial") or (folder / "manifest.json").exists():
        return _checkpoint_of_run(folder, place, warn)
    if (folder / "config.yaml").is_file():  # final/ of a finished run, otherwise its latest checkpoint
        if (folder / "final").is_dir():
            return _folder(folder / "final", name="final", run_dir=folder, iteration=_last_iteration(folder))
        if newest := _newest(folder / "checkpoints"):
            return _checkpoint_of_run(newest.resolve(), place, warn)
        raise UserError(KEY, f"{place} has saved no checkpoint yet", "wait for one, or lower checkpoint.every")
    if folder.name == "checkpoints" and (newest := _newest(folder)):
        return _checkpoint_of_run(newest, place, warn)
    if (folder / "adapter_config.json").is_file() or (folder / "config.json").is_file():
        runs = [above for above in folder.parents[:3] if all((above / name).is_file() for name in _OF_A_RUN)]
        if runs and folder.name == "policy":
            return _checkpoint_of_run(folder.parent, place, warn)
        iteration = _last_iteration(runs[0]) if runs and folder.name == "final" else None
        return _folder(folder, name=folder.name, run_dir=runs[0] if runs else None, iteration=iteration)
    raise UserError(
        KEY,
        f"{place} is neither a run nor a model (no config.yaml, config.json or adapter_config.json)",
        "give a run's folder, one of its checkpoints, or a folder in Hugging Face or PEFT format",
    )


def _newest(folder: Path) -> Path | None:
    """The latest of a run's checkpoints/."""
    return pointed_to(folder / "latest") or next(reversed(checkpoints_in(folder)), None)


def _checkpoint_of_run(folder: Path, place: str, warn: Callable[[str], None]) -> EvaluatedCheckpoint:
    if folder.name.endswith(".partial"):
        raise UserError(KEY, f"{place} was never finished", "give another checkpoint of the run")
    warn_of_unlisted(folder, check_manifest(folder, KEY), warn)
    run = folder.parent.parent if (folder.parent.parent / "config.yaml").is_file() else None
    return _folder(folder / "policy", name=folder.name, run_dir=run, iteration=checkpoint_iteration(folder))


def _folder(folder: Path, *, name: str, run_dir: Path | None, iteration: int | None) -> EvaluatedCheckpoint:
    adapter = (folder / "adapter_config.json").is_file()
    if not adapter and not (folder / "config.json").is_file():
        raise UserError(KEY, f"{folder} holds no model", "give another checkpoint")
    return EvaluatedCheckpoint(name=name, policy=str(folder), is_adapter=adapter, run_dir=run_dir, iteration=iteration)


def _last_iteration(run: Path) -> int | None:
    try:
        return int(json.loads((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])["iteration"])
    except (OSError, ValueError, KeyError, IndexError):
        return None
