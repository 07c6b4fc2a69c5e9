"""The rooms of the house: imports point down, lazy ones too, and no modules import each other in a circle."""

import ast
from pathlib import Path

import pytest

import apa_cli

ROOT = Path(apa_cli.__file__).parent
GROUND = ("errors", "files", "secrets", "watchdog", "watched_thread")
ROOMS = (  # from the ground up: a room imports from those before it
    *("algorithms", "config", "assets", "data", "models", "rewards", "rollouts", "tracking", "checkpoints"),
    *("evaluation", "runs", "training", "commands"),
)
LEVELS = {**dict.fromkeys(("", *GROUND), 0), **{room: level for level, room in enumerate(ROOMS, start=1)}}


def imports(root):
    """Every module of ours by name, with the modules of ours that it imports anywhere in it."""
    files = {".".join(file.relative_to(root).with_suffix("").parts): file for file in root.rglob("*.py")}
    names = {name.removesuffix(".__init__").removesuffix("__init__"): file for name, file in files.items()}
    found = {}
    for name, file in names.items():
        mentioned = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                mentioned |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name}: relative import"
                mentioned |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        ours = {m.removeprefix("apa_cli").removeprefix(".") for m in mentioned if m.split(".")[0] == "apa_cli"}
        found[name] = {m for m in ours if m in names and m not in ("", name)}
    return found


def upward(found):
    """`module -> module` of every import from a higher room."""
    level = {name: LEVELS[name.split(".")[0]] for name in found}
    return [f"{name} -> {other}" for name in found for other in sorted(found[name]) if level[other] > level[name]]


def circle(found):
    """Modules that import each other in a circle; [] where there is none."""
    done, path = set(), []

    def visit(name):
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        path.append(name)
        for other in sorted(found[name]):
            if ring := visit(other):
                return ring
        done.add(path.pop())
        return []

    return next((ring for name in sorted(found) if (ring := visit(name))), [])


def test_imports_point_down():
    assert upward(imports(ROOT)) == []


def test_no_modules_import_each_other_in_a_circle():
    assert circle(imports(ROOT)) == []


def test_the_maths_needs_torch_and_nothing_else_of_ours():
    seen = {other for name, others in imports(ROOT).items() if name.startswith("algorithms") for other in others}
    assert {other.split(".")[0] for other in seen} == {"algorithms"}


def test_every_module_has_a_room():
    assert {name.split(".")[0] for name in imports(ROOT)} == set(LEVELS)


@pytest.mark.parametrize("lazy", [False, True])
def test_a_new_arrow_up_and_a_new_circle_are_seen(tmp_path, lazy):
    (tmp_path / "data").mkdir()
    (tmp_path / "training").mkdir()
    line = "from apa_cli.training import loop\n"
    (tmp_path / "data" / "table.py").write_text(f"def read():\n    {line}" if lazy else line)
    (tmp_path / "training" / "loop.py").write_text("import apa_cli.data.table\n")
    found = imports(tmp_path)
    assert upward(found) == ["data.table -> training.loop"]
    assert circle(found) == ["data.table", "training.loop", "data.table"]
