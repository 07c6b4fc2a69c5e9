"""What README and the guide promise can be typed as it stands, and the table of keys is the schema's."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from apa_cli.config.compose import compose_train

ROOT = Path(__file__).parents[2]
PAGES = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/guide.md", "docs/recipes.md")]
README = "\n".join(PAGES)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[list[str]]:
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    lines += [f"apa-train config={name}" for name in re.findall(r"config=(\w+)`", README) if name != "NAME"]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("apa-train")]


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_every_command_composes(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(blocks("yaml")[0], encoding="utf-8")
    overrides = [word for word in arguments if not word.startswith("-") and word != "job"]
    overrides = [f"{word.split('=')[0]}={word.split('=')[1].split(',')[0]}" for word in overrides]
    compose_train(overrides)


def test_there_are_commands_to_check() -> None:
    assert len(commands()) >= 7


def test_the_yaml_example_sets_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(blocks("yaml")[0], encoding="utf-8")
    config = compose_train(["config=mine.yaml"])
    assert config.policy.adapter.r == yaml.safe_load(blocks("yaml")[0])["policy"]["adapter"]["r"] == 16
    assert config.data.eval_path is None


def test_the_table_of_keys_is_up_to_date() -> None:
    result = subprocess.run([sys.executable, ROOT / "scripts" / "write_config_docs.py", "--check"], check=False)
    assert result.returncode == 0, "run scripts/write_config_docs.py"


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    assert len(PAGES[0].splitlines()) <= 160
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_recipe_is_in_the_table() -> None:
    for recipe in (ROOT / "configs" / "config").glob("*.yaml"):
        assert f"`{recipe.stem}`" in README
