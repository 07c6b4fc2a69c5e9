"""The shell of apa-train, with training replaced: what it is called with, and what its outcome becomes."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from apa_cli.config import compose
from apa_cli.config.members import member_name
from apa_cli.config.schema import TrainConfig
from apa_cli.config.sources import config_dir
from apa_cli.errors import UserError


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[TrainConfig, list[str]]]:
    """Every call of train. Seeds 3 to 6 fail in a way of their own."""
    calls: list[tuple[TrainConfig, list[str]]] = []

    def train(config: TrainConfig, overrides: list[str], *, signals: bool = True) -> None:
        calls.append((config, overrides))
        match config.seed:
            case 3:
                raise UserError("data.path", "row 7 is empty", "take it out")
            case 4:
                raise RuntimeError("no memory\nleft")
            case 5:
                Path(config.output_dir).mkdir()
                Path(config.output_dir, "run.log").write_text("Traceback ...")
                raise RuntimeError("no memory left")
            case 6:
                raise KeyboardInterrupt

    module = types.ModuleType("apa_cli.training.run")
    module.train = train  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "apa_cli.training.run", module)
    return calls


def test_it_trains_what_was_composed(apa_train, runs, workdir):
    code, out, err = apa_train("objective=awr", "seed=1", "output_dir=here")
    assert (code, out, err) == (0, "", "")
    [(config, overrides)] = runs
    assert (config.objective.name, config.seed) == ("awr", 1)
    assert config.output_dir == str(workdir / "here")
    assert overrides == ["objective=awr", "seed=1", "output_dir=here"]
    assert list(workdir.rglob("*")) == []  # Hydra leaves nothing of its own


def test_overrides_and_options_come_in_any_order(apa_train, runs):
    code, _, err = apa_train("objective=ppo", "-m", "objective.kl_lambda=0.3")
    assert (code, err) == (0, "")
    assert [(config.objective.name, config.objective.kl_lambda) for config, _ in runs] == [("ppo", 0.3)]


def test_a_users_file_is_found(apa_train, runs, workdir):
    (workdir / "mine.yaml").write_text("defaults: [reviews_apa]\nseed: 9\n")
    assert apa_train("config=mine.yaml", "output_dir=x")[0] == 0
    [(config, overrides)] = runs
    assert config.seed == 9
    assert overrides[0] == f"config={workdir}/mine.yaml"


def test_a_sweep_gives_each_run_its_folder(apa_train, runs, workdir):
    (workdir / "mine.yaml").write_text("defaults: [reviews_apa]\nseed: 9\n")
    code, _, err = apa_train("-m", "config=mine.yaml,reviews_ppo", "objective.kl_lambda=0.1,0.2", "output_dir=sweep")
    assert (code, err) == (0, "")
    mine = member_name([f"config={workdir}/mine.yaml"])
    assert [(c.seed, c.objective.name, c.objective.kl_lambda, c.output_dir) for c, _ in runs] == [
        (9, "apa", 0.1, str(workdir / f"sweep/{mine},objective.kl_lambda=0.1")),
        (9, "apa", 0.2, str(workdir / f"sweep/{mine},objective.kl_lambda=0.2")),
        (0, "ppo", 0.1, str(workdir / "sweep/config=reviews_ppo,objective.kl_lambda=0.1")),
        (0, "ppo", 0.2, str(workdir / "sweep/config=reviews_ppo,objective.kl_lambda=0.2")),
    ]


def test_a_sweep_without_a_folder_gets_one_of_its_own(apa_train, runs, workdir):
    assert apa_train("-m", "seed=1,2")[0] == 0
    assert {Path(config.output_dir).parent.parent for config, _ in runs} == {workdir / "sweeps"}
    assert len({Path(config.output_dir).parent for config, _ in runs}) == 1
    assert [Path(config.output_dir).name for config, _ in runs] == ["seed=1", "seed=2"]


def test_a_sweeps_folder_may_stand_in_the_users_file(apa_train, runs, workdir):
    (workdir / "mine.yaml").write_text("defaults: [reviews_apa]\noutput_dir: it's here\nseed: 9\n")
    assert apa_train("-m", "config=mine.yaml", "objective.kl_lambda=1,2")[0] == 0
    assert {Path(config.output_dir).parent for config, _ in runs} == {workdir / "it's here"}


def test_one_sweep_has_one_folder(apa_train, runs, workdir):
    code, _, err = apa_train("-m", "output_dir=a,b")
    assert (code, runs, list(workdir.iterdir())) == (2, [], [])
    assert err == (
        "apa-train: error: output_dir: several folders for one sweep; give one: each run gets a folder inside it\n"
    )


def test_a_launcher_that_is_not_installed_names_its_extra(apa_train, runs, workdir, monkeypatch):
    from hydra.core.config_store import ConfigStore

    monkeypatch.delitem(ConfigStore.instance().repo["hydra"]["launcher"], "joblib.yaml", raising=False)
    code, _, err = apa_train("-m", "sweep=joblib", "seed=1,2")
    assert (code, runs, list(workdir.iterdir())) == (2, [], [])
    assert err == (
        "apa-train: error: sweep=joblib: needs the extra joblib, which is not installed; "
        "pip install 'apa-cli[joblib]'\n"
    )


@pytest.mark.parametrize(("defaults", "launcher"), [("", "basic"), ("defaults: [{sweep: joblib}]\n", "joblib")])
def test_a_users_file_may_choose_how_sweeps_run(workdir, defaults, launcher):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs hydra-joblib-launcher")
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    compose.register()
    (workdir / "mine.yaml").write_text(f"{defaults}seed: 9\n")
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        composed = hydra_compose("train", [f"config={workdir}/mine.yaml"], return_hydra_config=True)
    assert launcher in composed.hydra.launcher._target_


@pytest.mark.parametrize(
    ("seed", "code", "last"),
    [
        (3, 2, "apa-train: error: data.path: row 7 is empty; take it out"),
        (4, 1, "apa-train: internal error: RuntimeError: no memory left (APA_TRACEBACK=1 shows the traceback)"),
        (5, 1, "apa-train: internal error: RuntimeError: no memory left (traceback in x/run.log)"),
        (6, 130, "apa-train: interrupted"),
    ],
)
def test_exit_codes(apa_train, runs, seed, code, last):
    got, _, err = apa_train(f"seed={seed}", "output_dir=x")
    assert got == code
    assert err.splitlines()[-1] == last
    assert len(err.splitlines()) == (code > 0)
    assert "HYDRA_FULL_ERROR" not in err


@pytest.mark.parametrize(("seeds", "code"), [("1,3,2", 2), ("3,5,2", 1), ("5,3", 1), ("1,2", 0)])
def test_the_other_runs_of_a_sweep_go_on(apa_train, runs, seeds, code):
    got, _, err = apa_train("-m", f"seed={seeds}", "output_dir=x")
    assert got == code
    assert [config.seed for config, _ in runs] == [int(seed) for seed in seeds.split(",")]
    failed = [seed for seed in seeds.split(",") if seed in "35"]
    assert [line.split(": ")[2] for line in err.splitlines()] == [f"seed={seed}" for seed in failed]


@pytest.mark.parametrize("sweep", [(), ("-m",)])
def test_a_folder_of_the_users_own_adds_recipes_and_choices(apa_train, runs, workdir, sweep):
    (workdir / "my/config").mkdir(parents=True)
    (workdir / "my/objective").mkdir()
    (workdir / "my/config/house.yaml").write_text("# @package _global_\nseed: 8\n")
    (workdir / "my/objective/gentle.yaml").write_text("name: apa\nkl_lambda: 5\n")
    code, _, err = apa_train("--config-dir", "my", "config=house", "policy.path=p", "data.path=d", "reward.path=r",
                             "objective=gentle", "output_dir=x", *sweep)  # fmt: skip
    assert (code, err) == (0, "")
    assert (runs[0][0].seed, runs[0][0].objective.kl_lambda) == (8, 5.0)
