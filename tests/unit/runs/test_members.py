"""Members of a sweep: which are done, which are run again, and what is noted of a failure."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from apa_cli.checkpoints.ownership import RUN, RUN_BEGINS, record
from apa_cli.config.compose import compose_train
from apa_cli.config.members import LONGEST, member_name
from apa_cli.errors import UserError
from apa_cli.files import files_in
from apa_cli.runs.folders import FINISHED, read_run
from apa_cli.runs.members import alone, done_before, failures_of, note_failure
from apa_cli.secrets import redact


@pytest.fixture
def config(tmp_path: Path):
    return compose_train([f"output_dir='{tmp_path}/s/seed=0'", "objective.kl_lambda=0.1"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "s" / "seed=0"
    folder.mkdir(parents=True)
    return folder


def finish(folder: Path, config) -> None:
    OmegaConf.save(OmegaConf.create(redact(config)), folder / "config.yaml")
    (folder / "summary.json").write_text('{"iterations": 60, "seconds": 1.0}')


def test_names_do_not_depend_on_order_or_on_where_it_runs():
    name = member_name(["seed=0", "objective.kl_lambda=0.1"])
    assert name == "objective.kl_lambda=0.1,seed=0"
    elsewhere = [
        "output_dir=x/y",
        "sweep=joblib",
        "tracking=local",
        "tracking.console=quiet",
        "hydra.launcher.n_jobs=2",
    ]
    assert member_name(["objective.kl_lambda=0.1", *elsewhere, "seed=0"]) == name
    assert member_name(["output_dir=x"]) == "default"


def test_names_are_one_folder_and_stay_apart():
    mine, other = member_name(["config=/home/me/mine.yaml"]), member_name(["config=/home/you/mine.yaml"])
    assert mine.startswith("config=mine.yaml-")
    assert mine != other
    assert "/" not in member_name(["policy.path=builtin:reviews/policy", "data.path='a b/c'"])
    a, b = (member_name([f"policy.path={'x' * 300}", f"seed={seed}"]) for seed in (1, 2))
    assert a != b
    assert max(len(a), len(b)) <= LONGEST
    fixed = [f"training.{'x' * i}=1" for i in range(1, 12)]
    assert "kl_lambda=0.1,seed=3," in member_name(["objective.kl_lambda=0.1", "seed=3", *fixed])


def test_the_same_configuration_is_done(folder: Path, config):
    finish(folder, config)
    config.output_dir, config.tracking.console = "elsewhere", "quiet"
    assert done_before(folder, config)


def test_another_configuration_is_refused_and_left_alone(folder: Path, config):
    finish(folder, config)
    config.objective.kl_lambda = 0.7
    with pytest.raises(UserError, match=r"another configuration: objective\.kl_lambda=0\.1, now 0\.7; choose"):
        done_before(folder, config)
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "summary.json"]


def test_a_key_that_an_older_version_did_not_know_is_no_difference(folder: Path, config):
    finish(folder, config)
    old = OmegaConf.load(folder / "config.yaml")
    del old["advantage"]["gamma"]
    OmegaConf.save(old, folder / "config.yaml")
    assert done_before(folder, config)


@pytest.mark.parametrize(("rows", "resume"), [("", None), ('{"iteration": 0}\n', None), ('{"iteration": 3}\n', "auto")])
def test_a_killed_member_is_gone_on_with(folder: Path, config, rows, resume):
    record(folder, RUN, RUN_BEGINS)
    (folder / "metrics.jsonl").write_text(rows)
    note_failure(folder, "x", code=1, sweep="now", overrides=["seed=0"], config=config)
    assert not done_before(folder, config)
    assert config.resume == resume
    assert files_in(folder.parent) == ["seed=0/.apa-cli", "seed=0/metrics.jsonl"]


def test_what_is_no_member_is_left_alone(folder: Path, config):
    (folder / "metrics.jsonl").write_text("mine")
    (folder / "failed.json").write_text("{}")
    assert not done_before(folder, config)
    note_failure(folder, "x", code=2, sweep="now", overrides=["seed=0"], config=config)
    assert files_in(folder.parent) == [".conflicts/seed=0.json", "seed=0/failed.json", "seed=0/metrics.jsonl"]
    assert config.resume is None
    assert (folder / "failed.json").read_text() == "{}"


def test_a_member_is_run_by_one_process_at_a_time(folder: Path):
    with alone(folder), pytest.raises(UserError, match="another process runs it now"), alone(folder):
        pass
    with alone(folder):
        pass


def test_failures_are_those_of_this_call(folder: Path, config, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret_value")
    other = folder.with_name("seed=1")
    other.mkdir()
    note_failure(folder, "bad hf_very_secret_value", code=2, sweep="now", overrides=["seed=0"], config=config)
    note_failure(other, "earlier", code=1, sweep="before", overrides=["seed=1"], config=None)
    assert failures_of(folder.parent, "now") == [("seed=0", "bad ***", 2)]
    assert "very_secret" not in (folder / "failed.json").read_text()
    run = read_run(folder)
    assert (run.reason, run.overrides, run.config["objective.kl_lambda"]) == ("bad ***", ("seed=0",), 0.1)


def test_a_finished_run_is_not_touched_by_a_failure(folder: Path, config):
    finish(folder, config)
    before = sorted(path.name for path in folder.iterdir())
    note_failure(folder, "finished with another", code=2, sweep="now", overrides=[], config=config)
    assert sorted(path.name for path in folder.iterdir()) == before
    assert failures_of(folder.parent, "now") == [("seed=0", "finished with another", 2)]
    assert read_run(folder).status == FINISHED
    with alone(folder):  # the next attempt forgets it
        assert failures_of(folder.parent, "now") == []
