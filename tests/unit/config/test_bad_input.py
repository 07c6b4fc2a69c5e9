"""What the user gets wrong ends before anything is loaded or written: exit 2 and one line with the way out."""

from __future__ import annotations

import sys
import types

import pytest


@pytest.fixture(autouse=True)
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Should a check be lost, the test fails at once instead of training."""
    module = types.ModuleType("apa_cli.training.run")
    module.train = lambda config, overrides, **_: pytest.fail("training began")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "apa_cli.training.run", module)


BAD = [
    # unknown keys, with the nearest
    (["objective.kl_lamda=1"], "objective.kl_lamda: unknown key; did you mean objective.kl_lambda?"),
    (["kl_lambda=1"], "kl_lambda: unknown key; did you mean objective.kl_lambda?"),
    (["optimiser.learning_rate=1"], "optimiser.learning_rate: unknown key; did you mean optimizer.learning_rate?"),
    (["objetive=ppo"], "objetive: unknown key; did you mean objective?"),
    (["+policy.foo=1"], "policy.foo: unknown key"),
    (["++training.iteratons=1"], "training.iteratons: unknown key; did you mean training.iterations?"),
    (["~objective.kl_lambda"], "objective.kl_lambda: cannot be deleted; leave out the ~"),
    (["seed.x=1"], "seed: a value, not a group of keys; give a whole number"),
    # choices and files
    (["objective=pp0"], "objective=pp0: no such choice; did you mean ppo? choose one of a_star_po, apa, awr,"),
    (["objective=null"], "objective: null is not the name of one choice; give one: objective=CHOICE"),
    (["objective=[apa,ppo]"], "objective: [apa,ppo] is not the name of one choice"),
    (["config=review_ppo"], "config=review_ppo: no such recipe; did you mean reviews_ppo?"),
    (["config=nope.yaml"], "config=nope.yaml: no such file"),
    (["config=~/nope.yaml"], "nope.yaml: no such file"),
    (["config=folder/"], "config=folder: no such file"),
    (
        ["objective.name=pp0"],
        "objective.name: 'pp0' is not a choice; did you mean ppo? choose one of apa, awr, grpo, ppo",
    ),
    # types and ranges
    (["training.iterations=many"], "training.iterations: 'many' is not a whole number"),
    (["training.iterations=1.5"], "training.iterations: '1.5' is not a whole number"),
    (["seed=null"], "seed: cannot be null; give a whole number"),
    (["policy.trust_remote_code=maybe"], "policy.trust_remote_code: 'maybe' is not true or false"),
    (["policy.adapter=lora"], "policy.adapter: a group of keys, not a value ('lora'); write policy.adapter.r=VALUE"),
    (["generation.stop=a"], "generation.stop: 'a' is not a list such as [a,b]"),
    (["optimizer.betas=[0.9,b]"], "optimizer.betas: '[0.9, 'b']' is not a list of numbers"),
    (["objective.kl_lambda=-1"], "objective.kl_lambda: -1 is out of range; give a number greater than 0"),
    (["objective.kl_lambda=nan"], "objective.kl_lambda: nan is not a finite number"),
    (["optimizer.learning_rate=inf"], "optimizer.learning_rate: inf is not a finite number"),
    # impossible together
    (["objective.kl_target=6", "objective.kl_lambda=30"], "objective.kl_lambda: 30, but a steered λ stays between"),
    (["policy=lora", "policy.adapter.path=x"], "policy.adapter.r: 16, but the trained adapter"),
    (["generation.min_new_tokens=64"], "generation.min_new_tokens: 64 is more than generation.max_new_tokens=32"),
    (["reward=function"], "reward.function: not set, but reward.kind=function needs it"),
    (["policy.path=???"], "policy.path: not set; give it a value, such as policy.path=VALUE"),
    # the command line itself
    (["mine.yaml"], "mine.yaml: not KEY=VALUE; did you mean config=mine.yaml?"),
    (["objective"], "objective: not KEY=VALUE; did you mean objective=VALUE?"),
    (["--mutirun"], "--mutirun: unknown option; did you mean --multirun?"),
    (["--cfg", "jobs"], "--cfg"),
    (["-m", "--cfg", "job"], "Only one of --run, --multirun, --cfg, --info and"),
    (["--config-name", "x"], "--config-name: unknown option; name a file: config=FILE"),
    (["--resolve"], "--resolve"),
    (["--config-dir", "nowhere"], "--config-dir: no folder nowhere"),
    (["objective.kl_lambda=0.1,0.3"], "objective.kl_lambda: several values (0.1,0.3); add -m"),
    (["generation.stop=a,b"], "generation.stop: several values (a,b); write generation.stop=[a,b]"),
    (["policy.path=${nope}"], "policy.path: Interpolation key 'nope' not found"),
    (["policy.path='a"], "policy.path: cannot read the value"),
    # in a sweep, before its first run
    (["-m", "objective.kl_lambda=0.1,-1"], "objective.kl_lambda: -1 is out of range"),
    (["-m", "objective=apa,pp0"], "objective=pp0: no such choice"),
    (["config=reviews_apa,nope.yaml", "-m"], "config=nope.yaml: no such file"),
    (["--experimental-rerun", "x"], "--experimental-rerun: unknown option"),
    # asked to show it, not to run it
    (["--cfg", "job", "objective.kl_lamda=1"], "objective.kl_lamda: unknown key"),
]


@pytest.mark.parametrize(("argv", "line"), BAD, ids=[" ".join(argv) for argv, _ in BAD])
def test_bad_input(apa_train, workdir, argv, line):
    code, out, err = apa_train(*argv)
    assert code == 2
    assert err.startswith("apa-train: error: ")
    assert line in err
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert out == ""
    assert list(workdir.iterdir()) == []


def test_full_error_shows_the_traceback(apa_train, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    code, _, err = apa_train("objective.kl_lamda=1")
    assert code == 2
    assert err.startswith("Traceback")
    assert err.splitlines()[-1].startswith("apa-train: error: objective.kl_lamda: unknown key")
