"""apa-eval's command line: what `checkpoint=` may be, and which configuration an evaluation runs under."""

import pytest
from omegaconf import OmegaConf

from apa_cli.commands.eval import compose_evaluation, main, read_arguments
from apa_cli.errors import UserError
from apa_cli.evaluation.checkpoint_paths import EvaluatedCheckpoint


@pytest.fixture(autouse=True)
def workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    return tmp_path


OWN = ("data.path: prompts.jsonl", "reward.path: some/reward")


def make_run(folder, lines=("seed: 7", "policy: {path: own/policy}")):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("\n".join((*lines, *OWN)) + "\n", encoding="utf-8")
    return checkpoint(folder)


def checkpoint(run_dir=None, policy="some/model"):
    return EvaluatedCheckpoint(name="final", policy=policy, is_adapter=False, run_dir=run_dir, iteration=None)


@pytest.mark.parametrize(
    ("value", "places"),
    [
        ("runs/a", ["runs/a"]),
        ("[runs/a]", ["runs/a"]),
        ("[runs/a,runs/b]", ["runs/a", "runs/b"]),
        ("[runs/a, 'runs/b c']", ["runs/a", "runs/b c"]),
        ("runs/a,runs/b", ["runs/a", "runs/b"]),
        ("runs/a/checkpoints/*", ["runs/a/checkpoints/*"]),
        ("runs/a b", ["runs/a b"]),
        ("[1,2]", ["1", "2"]),
    ],
)
def test_one_place_or_a_list(value, places):
    assert read_arguments([f"checkpoint={value}"]) == (places, [])


@pytest.mark.parametrize("name", ["a,b=1", "[a]", "[a,b"])
def test_a_folder_that_is_there_is_meant(workdir, name):
    (workdir / name).mkdir()
    assert read_arguments([f"checkpoint={name}"]) == ([name], [])


def test_other_arguments_are_overrides_in_their_order():
    given = ["evaluation.prompts=8", "checkpoint=runs/a", "checkpoint.every=3", "seed=1"]
    assert read_arguments(given) == (["runs/a"], ["evaluation.prompts=8", "checkpoint.every=3", "seed=1"])


def test_the_runs_own_configuration(workdir):
    config = compose_evaluation([make_run(workdir / "run")], [])
    assert (config.seed, config.policy.path) == (7, "own/policy")


def test_overrides_stand_above_the_runs_own(workdir):
    config = compose_evaluation([make_run(workdir / "run")], ["seed=9", "evaluation.decoding=greedy"])
    assert (config.seed, config.evaluation.decoding, config.policy.path) == (9, "greedy", "own/policy")


def test_config_wins_over_the_runs_own(workdir):
    (workdir / "mine.yaml").write_text("\n".join(("policy: {path: my/policy}", *OWN)), encoding="utf-8")
    config = compose_evaluation([make_run(workdir / "run")], ["config=mine.yaml"])
    assert config.policy.path == "my/policy"
    assert config.seed == 0
    assert compose_evaluation([checkpoint()], ["config=mine.yaml"]).policy.path == "my/policy"


def test_a_run_with_odd_signs_in_its_name(workdir):
    assert compose_evaluation([make_run(workdir / "kl=0.1 b")], []).seed == 7


def test_the_first_run_decides_for_several(workdir):
    runs = [make_run(workdir / name, (f"seed: {seed}", "policy: {path: p}")) for name, seed in (("a", 5), ("b", 6))]
    assert compose_evaluation(runs, []).seed == 5


@pytest.mark.parametrize(
    "other", ["policy: {path: q}", "policy: {path: p, adapter: {path: x}}", "policy: {path: p}\nreference: {path: x}"]
)
def test_runs_from_different_starts_are_not_compared(workdir, other):
    runs = [make_run(workdir / "a", ("policy: {path: p}",)), make_run(workdir / "b", (other,))]
    with pytest.raises(UserError, match="a and b started from different policies"):
        compose_evaluation(runs, [])
    (workdir / "mine.yaml").write_text("\n".join(("policy: {path: p}", *OWN)), encoding="utf-8")
    assert compose_evaluation(runs, ["config=mine.yaml"]).policy.path == "p"


def test_a_model_of_no_run_needs_to_be_told_what_it_is_compared_with(workdir):
    (workdir / "model").mkdir()
    for policy, shown in ((str(workdir / "model"), "model belongs"), ("runs/mine", r"mine \(no folder here\) belongs")):
        with pytest.raises(UserError, match=f"{shown} to no run") as caught:
            compose_evaluation([checkpoint(policy=policy)], ["seed=1"])
        assert "add config=" in str(caught.value)
    overrides = ["policy.path=gpt2", "reward.path=some/reward", "data.path=mine.jsonl"]
    config = compose_evaluation([checkpoint()], overrides)
    assert (config.policy.path, config.data.path) == ("gpt2", "mine.jsonl")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["checkpoint=x", "-h"]])
def test_help(arguments, capsys):
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert "apa-eval checkpoint=runs/mine" in out
    assert err == ""


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("apa-eval ")


def test_cfg_job_shows_what_would_run_and_judges_nothing(workdir, monkeypatch, capsys):
    run = make_run(workdir / "run")
    monkeypatch.setattr("apa_cli.commands.eval.find_checkpoints", lambda places, warn: [run])
    assert main(["checkpoint=run", "seed=9", "--cfg", "job"]) == 0
    shown = OmegaConf.create(capsys.readouterr().out)
    assert (shown.seed, shown.policy.path) == (9, "own/policy")
    assert not (workdir / "run" / "evaluation").exists()
    assert main(["checkpoint=run", "--cfg", "hydra"]) == 2
    assert capsys.readouterr().err == "apa-eval: error: --cfg: shows the job alone; write --cfg job\n"
