"""Training state on disk: numbers as JSON, tensors as safetensors, nothing pickled."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from apa_cli.algorithms import Targets
from apa_cli.checkpoints.export import save_policy
from apa_cli.checkpoints.find import TRAINER_STATE
from apa_cli.errors import UserError
from apa_cli.evaluation.judge import Judgement
from apa_cli.evaluation.respond import JudgedResponse
from apa_cli.files import fault_point
from apa_cli.models.roles import Models
from apa_cli.rollouts.trajectory import Trajectory
from apa_cli.tracking.samples import Sample
from apa_cli.training.random_states import RandomStates
from apa_cli.training.resume import Resumption
from apa_cli.training.state import TrainingState, Work
from apa_cli.training.update import Progress

STATE_FILE = "state.json"
OPTIMIZER_FILE = "optimizer.safetensors"
RANDOM_FILE = "random.safetensors"
INITIAL_FILE = "initial_evaluation.json"
WORK_FILE = "work.safetensors"  # only in a checkpoint made in the middle of an iteration


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The content of a checkpoint: the policy, the critic if any, and all else in trainer_state/."""

    models: Models
    state: TrainingState

    @property
    def iteration(self) -> int:
        return self.state.iteration

    @property
    def position(self) -> tuple[int, int, int]:
        return self.state.position

    @property
    def part(self) -> bool:
        return self.state.work is not None

    def write(self, folder: Path) -> None:
        save_policy(self.models.policy, folder / "policy")
        fault_point()
        if self.models.value is not None:
            self.models.value.save(folder / "value")
            fault_point()
        save_training_state(self.state, folder / TRAINER_STATE)


def save_training_state(state: TrainingState, folder: Path) -> None:
    """Write iteration, data position, moments, steered λ or β, optimizer, random states and unfinished work."""
    folder.mkdir(parents=True, exist_ok=True)
    random = state.random_states()
    numbers = {**state.scalars(), "random": random.numbers, "work": state.work and _work_numbers(state.work)}
    (folder / STATE_FILE).write_text(json.dumps(numbers, indent=2), encoding="utf-8")
    fault_point()
    save_file(_optimizer_tensors(state.optimizer), folder / OPTIMIZER_FILE)
    fault_point()
    save_file(random.tensors, folder / RANDOM_FILE)
    if state.initial is not None:
        (folder / INITIAL_FILE).write_text(json.dumps(asdict(state.initial)), encoding="utf-8")
    if state.work is not None:
        fault_point()
        save_file(_work_tensors(state.work), folder / WORK_FILE)


def load_training_state(state: TrainingState, folder: Path) -> None:
    """Load into a new state whose parameters hold the checkpoint's weights."""
    saved = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    state.load_scalars(saved)
    _load_optimizer(state.optimizer, load_file(folder / OPTIMIZER_FILE))
    if (folder / INITIAL_FILE).is_file():
        state.initial = _judgement(json.loads((folder / INITIAL_FILE).read_text(encoding="utf-8")))
    if saved.get("work") is not None:
        device = str(state.optimizer.param_groups[0]["params"][0].device)
        state.work = _work(saved["work"], load_file(folder / WORK_FILE, device=device))
    RandomStates(numbers=saved["random"], tensors=load_file(folder / RANDOM_FILE)).restore()


def resume_state(resumption: Resumption, state: TrainingState) -> list[str]:
    """Load the checkpoint of `resumption` into a new `state` and return lines for the log.

    Raises UserError if the checkpoint does not fit.
    """
    checkpoint = resumption.checkpoint
    if checkpoint is None:
        return ["no complete checkpoint yet: the run starts again"]
    try:
        load_training_state(state, checkpoint / TRAINER_STATE)
    except (KeyError, ValueError, TypeError, RuntimeError, OSError, SafetensorError) as error:
        problem = f"{checkpoint} does not fit this configuration ({type(error).__name__}: {error})"
        raise UserError("resume", problem, "set back what changes the models, or start a new run") from error
    lines = [f"resuming from {checkpoint.name}: {state.iteration} iterations done"]
    if state.work is not None:
        lines[0] += ", and part of the next"
    if resumption.changed:
        lines.append(f"changed since: {', '.join(resumption.changed)}")
    return lines


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """`{parameter index}.{exp_avg | exp_avg_sq | step}` in the order of the parameter groups.

    bitsandbytes nests its quantised states one level deeper, which adds a part to the name, and has all of them
    share their tables of levels: these are written out for each, as a file of safetensors holds nothing twice.
    """
    tensors: dict[str, Tensor] = {}
    written: set[int] = set()
    for index, entry in optimizer.state_dict()["state"].items():
        for name, value in entry.items():
            parts = {f"{name}.{part}": v for part, v in value.items()} if isinstance(value, dict) else {name: value}
            for part, held in parts.items():
                tensor = torch.as_tensor(held).contiguous()
                place = tensor.untyped_storage().data_ptr()
                tensors[f"{index}.{part}"] = tensor.clone() if place in written else tensor
                written.add(place)
    return tensors


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Raises ValueError for the states of another kind of optimizer."""
    eight_bit = not isinstance(optimizer, torch.optim.AdamW)
    if tensors and eight_bit != any(key.endswith(".state1") for key in tensors):
        raise ValueError(f"its optimizer states are not those of {type(optimizer).__name__}")
    entries: dict[int, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        index, *groups, name = key.split(".")
        entry = entries.setdefault(int(index), {})
        for group in groups:
            entry = entry.setdefault(group, {})
        counts = tensor.dim() == 0 and not tensor.is_floating_point()  # bitsandbytes counts its steps in an int
        entry[name] = int(tensor) if counts else tensor
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})


def _work_numbers(work: Work) -> dict[str, Any]:
    return {
        "metrics": work.metrics,
        "samples": [asdict(sample) for sample in work.samples],
        "epochs": work.progress.epochs,
        "rows": work.progress.rows,
        "means": {name: [float(mean.total), float(mean.count)] for name, mean in work.progress.means.items()},
        "skipped": work.skipped,
        "seconds": work.seconds,
    }


def _work_tensors(work: Work) -> dict[str, Tensor]:
    records: dict[str, Any] = {"trajectory": work.trajectory, "targets": work.targets}
    found = {f"{name}.{own.name}": getattr(part, own.name) for name, part in records.items() for own in fields(part)}
    found["order"] = work.progress.order
    return {name: tensor.contiguous() for name, tensor in found.items() if isinstance(tensor, Tensor)}


def _work(numbers: dict[str, Any], tensors: dict[str, Tensor]) -> Work:
    """Raises KeyError or TypeError for the work of an earlier version, whose records were others."""
    parts: dict[str, dict[str, Any]] = {"trajectory": {}, "targets": {}, "order": {}}
    for key, tensor in tensors.items():
        record, _, name = key.partition(".")
        parts[record][name] = tensor
    order = parts["order"].get("")
    progress = Progress(epochs=numbers["epochs"], order=None if order is None else order.cpu(), rows=numbers["rows"])
    for name, (total, count) in numbers["means"].items():
        progress.means[name].add(total, count)
    return Work(
        trajectory=Trajectory(**parts["trajectory"]),
        targets=Targets(**parts["targets"]),
        metrics=numbers["metrics"],
        samples=[Sample(**sample) for sample in numbers["samples"]],
        progress=progress,
        skipped=numbers["skipped"],
        seconds=numbers["seconds"],
    )


def _judgement(saved: dict[str, Any]) -> Judgement:
    drawn = {
        name: [
            JudgedResponse(**{**response, "token_ids": tuple(response["token_ids"])})
            for response in saved.get(name, [])
        ]
        for name in ("responses", "opponents")
    }
    return Judgement(metrics=saved["metrics"], **drawn)
