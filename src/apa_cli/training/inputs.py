"""versions.json: which software, models, reward functions and data a run uses, so that resuming notices a change.

Local files of models and reward functions and the rows of the data are digests; what comes from the Hub is a commit.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import os
import platform
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from apa_cli import __version__
from apa_cli.assets.resolve import resolve_path
from apa_cli.checkpoints.manifest import sha256_of
from apa_cli.config.reward_checks import each_reward
from apa_cli.config.schema import TrainConfig
from apa_cli.config.sources import shown
from apa_cli.data.prompts import Prompt, PromptSet
from apa_cli.errors import UserError
from apa_cli.models.device import Runtime
from apa_cli.models.weight_files import ADAPTER_CONFIG, TOKENIZER
from apa_cli.runs.folders import flat
from apa_cli.training.resume import ALLOW, KEY, Resumption

VERSIONS_FILE = "versions.json"

Digests = dict[str, dict[str, str]]  # by key of the configuration, by name of what lies there: size and SHA-256

_OF_A_MODEL = ("*.safetensors", "*.safetensors.index.json", "*config.json", "*.jinja", "*.py", "spiece.model")
_INSTALLED = {"site-packages", "dist-packages"}
_ROWS_DEPEND_ON = ("data.", "seed", "evaluation.prompts")
_SHOWN = 3  # names of one key in a message
_plain = json.JSONEncoder(default=str).encode


def versions_of(
    config: TrainConfig,
    resumption: Resumption | None,
    models: dict[str, Any],
    runtime: Runtime,
    prompts: PromptSet,
    held_out: PromptSet,
    warn: Callable[[str], None],
) -> dict[str, Any]:
    """versions.json: versions of the software, commits of what came from the Hub, and `digests` of local inputs.

    A resumed run is compared with the versions it started with: different software is a warning, as it may round
    differently, and different inputs raise UserError unless resume_allow_changes is set. What a checkpoint holds has no
    commit, so the first one is kept.
    """
    found = {name: getattr(getattr(model, "config", None), "_commit_hash", None) for name, model in models.items()}
    found |= {"data": prompts.commit, "eval_data": held_out.commit}
    commits = {f"{name}_commit": commit for name, commit in found.items() if commit}
    versions: dict[str, Any] = {
        "apa_cli": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "peft")},
        "device": runtime.describe(),
    }
    now = digests(config, prompts.prompts, held_out.prompts)
    file = resumption.source / VERSIONS_FILE if resumption is not None else None
    if resumption is None or file is None or not file.is_file():
        return {**versions, **commits, "inputs": now}
    before = _read_noted(file)
    kept = {name: value for name, value in before.items() if name.endswith("_commit") and value}
    changed = [_change(name, before, commits) for name in commits if before.get(name) not in (None, commits[name])]
    if "inputs" in before:
        keys = [text.partition(" ")[0] for text in resumption.changed]
        changed += _differences(before["inputs"], now, config, keys)
    if changed:
        problem = f"changed under the same path since the run began: {', '.join(changed)}"
        if not config.resume_allow_changes:
            raise UserError(KEY, problem, f"put it back, or add {ALLOW}=true to accept the change")
        warn(problem)
    if others := [_change(name, before, versions) for name, new in versions.items() if before.get(name) != new]:
        warn(f"versions differ from those the run started with, so numbers may differ: {', '.join(others)}")
    return {**versions, **kept, **commits, "inputs": now}


def _change(name: str, before: dict[str, Any], now: dict[str, Any]) -> str:
    return f"{name} {before.get(name)} → {now[name]}"


def digests(config: TrainConfig, prompts: Sequence[Prompt], held_out: Sequence[Prompt]) -> Digests:
    """Digests of everything local that `config` names. Files are read in parallel.

    For training prompts they cover only the columns, as a checkpoint's stream knows the tokens.
    """
    places = {key: files for key, files in _files(config) if files}
    files = sorted({file for group in places.values() for file in group.values()})
    with ThreadPoolExecutor() as pool:
        known = dict(zip(files, pool.map(_of_file, files), strict=True))
    found = {key: {name: known[file] for name, file in group.items()} for key, group in places.items()}
    found["data.path"] = _columns(prompts)
    if held_out:
        texts = _of_rows([prompt.text, prompt.messages] for prompt in held_out)
        rows = {f"held-out {name}": digest for name, digest in {"prompts": texts, **_columns(held_out)}.items()}
        found.setdefault("data.eval_path" if config.data.eval_path is not None else "data.path", {}).update(rows)
    return found


def _read_noted(file: Path) -> dict[str, Any]:
    """The versions.json of a run. Raises UserError if it is damaged."""
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        noted = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(noted, dict) and all(isinstance(there, dict) for there in dict(noted.get("inputs", {})).values()):
            return noted
    raise UserError(shown(str(file)), "is damaged", "fix it, or delete it to skip the comparison")


def _differences(before: Digests, now: Digests, config: TrainConfig, changed: Collection[str]) -> list[str]:
    """`key=value (what changed)` for each key whose digests differ.

    changed: keys whose values differ from the run's. They are left out, as are rows that depend on them.
    """
    values, found = flat(asdict(config)), []
    other_rows = any(name.startswith(_ROWS_DEPEND_ON) for name in changed)
    for key in {**before, **now}:
        old, new = before.get(key, {}), now.get(key, {})
        names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        moved = any(f"{key}.".startswith(f"{name}.") for name in changed) or (key.startswith("data.") and other_rows)
        if names and not moved:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            found.append(f"{key}={values.get(key)} ({', '.join(names[:_SHOWN])}{more})")
    return found


def _files(config: TrainConfig) -> Iterator[tuple[str, dict[str, Path]]]:
    """Keys and their files by name."""
    for key, path in {
        "policy.path": config.policy.path,
        "policy.adapter.path": config.policy.adapter.path,
        "reference.path": config.reference.path,
        "value.path": config.value.path,
    }.items():
        yield key, _of_model(path)
    for where, reward in each_reward(config).items():
        if reward.kind == "model":
            yield f"{where}.path", _of_reward_model(reward.path)
        elif reward.kind == "function" and reward.function is not None:
            yield f"{where}.function", _of_function(reward.function.rpartition(":")[0])


def _of_model(path: str | None, prefix: str = "") -> dict[str, Path]:
    """The files of a local model by name."""
    folder = None if path is None else Path(resolve_path(path)).expanduser()
    if folder is None or not folder.is_dir():
        return {}
    found = {file for pattern in (*_OF_A_MODEL, *TOKENIZER) for file in folder.glob(pattern) if file.is_file()}
    return {f"{prefix}{file.name}": file for file in sorted(found)}


def _of_reward_model(path: str | None) -> dict[str, Path]:
    """With the base of an adapter."""
    found = _of_model(path)
    if (adapter := found.get(ADAPTER_CONFIG)) is not None:
        found |= _of_model(json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"], "base/")
    return found


def _of_function(module: str) -> dict[str, Path]:
    """The file of a reward function, and what it imports from beside it, wherever in the code it does.

    Of a library that is installed, the file alone.
    """
    if module.endswith(".py"):
        file = Path(module).expanduser().resolve()
        root = file.parent
    else:
        file = Path(getattr(sys.modules.get(module), "__file__", None) or os.devnull)
        root = file.parents[min(module.count(".") + (file.stem == "__init__"), len(file.parents) - 1)]
    alone = not _INSTALLED.isdisjoint(root.parts) or module.startswith("apa_cli.")
    found, waiting = dict[str, Path](), [file]
    while waiting:
        file = waiting.pop()
        name = os.path.relpath(file, root)
        if name not in found and file.is_file():
            found[name] = file
            with contextlib.suppress(SyntaxError, ValueError, RecursionError, OSError):
                waiting += [] if alone else _imports(file, root)
    return found


def _imports(file: Path, root: Path) -> list[Path]:
    """Where below `root` each module, or package, that the file imports would be."""
    package, names = file.relative_to(root).parts[:-1], list[tuple[str, ...]]()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names += [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            module = (*above, *(node.module.split(".") if node.module else ()))
            names += [(*module, alias.name) for alias in node.names]
    parents = {name[:end] for name in names for end in range(1, len(name) + 1)}
    places = [root.joinpath(*name) for name in sorted(parents)]
    return [file for place in places for file in (place.with_suffix(".py"), place / "__init__.py")]


def _of_file(file: Path) -> str:
    return f"{file.stat().st_size} bytes, {sha256_of(file)}"


def _columns(prompts: Sequence[Prompt]) -> dict[str, str]:
    names = dict.fromkeys(name for prompt in prompts for name in prompt.columns)
    return {f"column {name}": _of_rows(prompt.columns.get(name) for prompt in prompts) for name in names}


def _of_rows(rows: Iterator[Any]) -> str:
    digest, count = hashlib.sha256(), 0
    for row in rows:
        count += 1
        digest.update(_plain(row).encode() + b"\n")
    return f"{count} rows, {digest.hexdigest()}"
