"""What a run writes with `${` in it is the same text when it is read back."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from apa_cli.config.yaml_files import escaped
from apa_cli.runs.folders import read_run

TEXTS = ["a ${x} b", r"\${x}", r"\\${x}", "${nowhere", r"a\b ${x", "x\\", "$x", r"\$ ${a:b} \\ ${c}", "${oc.env:HOME}"]


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back(tmp_path: Path, text: str):
    OmegaConf.save(OmegaConf.create(escaped({"a": {"b": [text, 1, None]}, "c": text})), tmp_path / "config.yaml")
    read = OmegaConf.to_container(OmegaConf.load(tmp_path / "config.yaml"), resolve=True)
    assert read == {"a": {"b": [text, 1, None]}, "c": text}
    assert read_run(tmp_path).config == {"a.b": [text, 1, None], "c": text}
