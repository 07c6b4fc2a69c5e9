"""Random values of every key: a configuration that passes, or one line that names the key."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from apa_cli.config.checks import check_config
from apa_cli.config.compose import compose_train
from apa_cli.config.keys import all_keys
from apa_cli.config.schema import ComponentConfig, TrainConfig
from apa_cli.errors import UserError

KEYS = all_keys()

# Neither what YAML cannot hold nor what OmegaConf gives a meaning of its own.
words = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), exclude_characters="$\ufeff"), max_size=12
)
odd_words = st.sampled_from(
    ["null", "true", "1e5", "1_000", "~", "- a", "a: b", "#", "[1, 2", "'", "2026-01-31", "=", "."]
)
numbers = st.floats() | st.integers(-(2**70), 2**70)
anything = st.recursive(
    st.none() | st.booleans() | numbers | words | odd_words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=2),
    max_leaves=4,
)


def limits(name: str) -> dict[str, float]:
    node: Any = TrainConfig
    *parents, leaf = name.split(".")
    fields = {field.name: field for field in dataclasses.fields(node)}
    for parent in parents:
        node = fields[parent].default_factory  # type: ignore[assignment]
        fields = {field.name: field for field in dataclasses.fields(node)}
    return dict(fields[leaf].metadata.get("limits", {}))


def valid(name: str) -> st.SearchStrategy[Any]:
    """What the key's own type, choices and limits allow."""
    key = KEYS[name]
    bounds = limits(name)
    low, high = bounds.get("minimum", bounds.get("above")), bounds.get("maximum", bounds.get("below"))
    if key.choices:
        values: st.SearchStrategy[Any] = st.sampled_from(key.choices)
    elif key.type is bool:
        values = st.booleans()
    elif key.type is int:
        low = -1000 if low is None else math.ceil(low)
        values = st.integers(low, low + 5000 if high is None else int(high))
    elif key.type is float:
        values = st.floats(
            low,
            high,
            allow_nan=False,
            allow_infinity=False,
            exclude_min="above" in bounds,
            exclude_max="below" in bounds,
        )
    elif name == "optimizer.betas":
        values = st.lists(st.floats(0, 0.999), min_size=2, max_size=2)
    elif key.type is dict and not name.endswith(".components"):
        values = st.dictionaries(
            st.sampled_from(["thinking", "a", "b"]), st.booleans() | st.integers(-5, 5), max_size=2
        )
    elif key.type is dict:
        weights = st.floats(-5, 5, allow_nan=False).filter(bool)
        values = st.dictionaries(
            st.from_regex(r"[a-z][a-z0-9_-]{0,8}", fullmatch=True),
            st.builds(ComponentConfig, path=words.filter(str.strip), weight=weights),
            max_size=2,
        )
    elif key.type is list:
        values = st.lists(words.filter(bool) | odd_words, max_size=3)
    elif name.endswith(".function"):
        values = st.sampled_from(["mine:f", "a/b.py:reward"])
    else:
        values = words.filter(str.strip) | odd_words
    return st.none() | values if key.optional else values


def compose(folder: Path, content: dict[str, Any]) -> TrainConfig:
    file = folder / "mine.yaml"
    OmegaConf.save(OmegaConf.create({"defaults": ["own"], **content}), file)
    return compose_train([f"config={file}"])


GIVEN = {"policy.path": "p", "reward.path": "r", "data.path": "d", "output_dir": "o"}
in_a_folder = [HealthCheck.function_scoped_fixture]


@settings(max_examples=40, deadline=None, suppress_health_check=in_a_folder)
@given(name=st.sampled_from(sorted(KEYS)), value=anything)
def test_any_value_passes_or_is_named(tmp_path: Path, name: str, value: Any):
    try:
        config = compose(tmp_path, {**GIVEN, name: value})
    except UserError as error:
        message = str(error)
        assert "\n" not in message
        assert name in message or (isinstance(value, dict) and name.split(".")[0] in message), message
        return
    check_config(config)
    found: Any = config
    for part in name.split("."):
        found = getattr(found, part)
    assert isinstance(found, (type(None), bool, int, float, str, list, dict))


def set_in(config: TrainConfig, name: str, value: Any) -> None:
    node: Any = config
    *parents, leaf = name.split(".")
    for parent in parents:
        node = getattr(node, parent)
    setattr(node, leaf, value)


@settings(max_examples=15, deadline=None, suppress_health_check=[*in_a_folder, HealthCheck.filter_too_much])
@given(data=st.data())
def test_what_is_written_is_read_back(tmp_path: Path, data: st.DataObject):
    config = compose(tmp_path, GIVEN)
    names = data.draw(st.lists(st.sampled_from(sorted(KEYS)), max_size=12, unique=True))
    changes = {name: data.draw(valid(name), label=name) for name in names}
    for name, value in changes.items():
        if name == "objective.kl_lambda" and value is None:  # is read as the objective's own
            continue
        set_in(config, name, value)
        try:
            check_config(config)
        except UserError:  # does not go with the others
            set_in(config, name, KEYS[name].default if name not in GIVEN else GIVEN[name])
            try:
                check_config(config)
            except UserError:
                assume(False)
    file = tmp_path / "written.yaml"
    OmegaConf.save(OmegaConf.create(dataclasses.asdict(config)), file)
    assert compose_train([f"config={file}"]) == config
