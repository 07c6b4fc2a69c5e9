"""Every choice `objective=NAME` on the built-in task: complete by itself, at rest where there is nothing to learn."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from apa_cli import train
from apa_cli.config.compose import compose_train
from apa_cli.models.loading import resolve_path
from apa_cli.training.reference_scores import _read

NAMES = ["grpo", "dr_grpo", "rloo", "dro", "pmd_mean", "gvpo", "a_star_po", "qrpo"]
SMALL = (
    *("generation.max_new_tokens=8", "rollout.batch_size=16", "training.minibatch_size=8", "evaluation.prompts=0"),
    *("evaluation.reward.kind=none", "evaluation.reward.function=null", "tracking.console=quiet"),
    *("tracking.wandb.mode=disabled", "advantage.reference_samples=3"),
)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: None)


def run(folder: Path, *overrides: str) -> list[dict[str, float]]:
    train(None, *SMALL, f"output_dir={folder}", f"rollout.reference_cache={cache(folder, overrides)}", *overrides)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def cache(folder: Path, overrides: tuple[str, ...]) -> str:
    return str(folder.parent / "cache") if {"objective=a_star_po", "objective=qrpo"} & set(overrides) else "null"


def final(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = (folder / "final").glob("*.safetensors")
    return load_file(file)


@pytest.mark.parametrize(("name", "policy"), zip(NAMES, ["full", "lora"] * 4, strict=True))
def test_each_is_complete(name, policy, tmp_path):
    """`objective=NAME` alone trains; its first responses are the initial policy's; resumed, it is the same."""
    words = (f"objective={name}", f"policy={policy}")
    whole = run(tmp_path / "whole", *words, "training.iterations=2", "checkpoint.every=1")
    assert whole[0]["kl/to_init"] == pytest.approx(0, abs=1e-4)
    assert whole[1]["kl/to_init"] != whole[0]["kl/to_init"]
    said = (tmp_path / "whole" / "run.log").read_text(encoding="utf-8")
    assert f"{name.upper()} on builtin:" in said
    run(tmp_path / "half", f"resume={tmp_path}/whole/checkpoints/iter_000001")
    ours, theirs = final(tmp_path / "half"), final(tmp_path / "whole")
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def constant(prompts, responses):
    return [0.7] * len(prompts)


@pytest.mark.parametrize("name", ["tba", "rebel"])
def test_other_names_of_gvpo(name):
    assert compose_train([f"objective={name}", "output_dir=x"]) == compose_train(["objective=gvpo", "output_dir=x"])


GROUP = ("advantage=group", "value=none", "rollout.responses_per_prompt=4")


@pytest.mark.parametrize(
    "words",
    [
        ("objective=apa", *GROUP),
        ("objective=awr", *GROUP),
        ("objective=ppo", *GROUP),
        *[(f"objective={name}",) for name in NAMES],
    ],
    ids=lambda words: words[0],
)
def test_a_constant_reward_moves_nothing(words, tmp_path):
    reward = ("reward.kind=function", f"reward.function={__file__}:constant", "reward.path=null")
    lines = run(tmp_path / "run", *words, *reward, "training.iterations=2")
    assert max(abs(line["kl/to_init"]) for line in lines) < 1e-3
    assert all(line["optim/idle_fraction"] == 1 for line in lines)
    assert all(line.get("rollout/equal_groups", 1) == 1 for line in lines)
    start = compose_train([]).policy.path
    before = load_file(Path(resolve_path(start)) / "model.safetensors")
    assert all(torch.equal(weight, before[name]) for name, weight in final(tmp_path / "run").items())


def by_prompt(prompts, responses):
    """Every response to a prompt of an odd length is as good as another; of an even one the longest is best."""
    return [
        1.0 if len(prompt) % 2 else float(len(response)) for prompt, response in zip(prompts, responses, strict=True)
    ]


def test_prompts_of_which_nothing_is_learnt_give_way_to_others(tmp_path):
    reward = ("reward.kind=function", f"reward.function={__file__}:by_prompt", "reward.path=null")
    words = ("objective=grpo", "rollout.responses_per_prompt=4", *reward, "checkpoint.every=1")
    (plain,), some, many = (
        run(tmp_path / str(limit), *words, f"rollout.dynamic_sampling={limit}", f"training.iterations={iterations}")
        for limit, iterations in ((0, 1), (1, 3), (100, 2))
    )
    assert 0 < plain["rollout/equal_groups"] < 1
    assert "rollout/replaced_groups" not in plain
    assert all(line["rollout/replaced_groups"] <= 1 for line in some)
    assert any(line["rollout/replaced_groups"] == 1 for line in some)
    assert all(line["rollout/equal_groups"] == 0 for line in many)
    assert sum(line["rollout/replaced_groups"] for line in many) > 0
    run(tmp_path / "half", f"resume={tmp_path}/100/checkpoints/iter_000001")
    ours, theirs = final(tmp_path / "half"), final(tmp_path / "100")
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_the_initial_policys_scores_are_drawn_once(tmp_path):
    words = ("objective=a_star_po", "training.iterations=2")
    first = run(tmp_path / "first", *words)
    (file,) = (tmp_path / "cache").iterdir()
    kept = file.read_text(encoding="utf-8")
    lines = [line for line in kept.splitlines() if line]
    assert len(_read(file)) == len(lines) == 32

    again = run(tmp_path / "again", *words)
    assert file.read_text(encoding="utf-8") == kept
    assert [line["objective/policy_loss"] for line in again] == [line["objective/policy_loss"] for line in first]

    # torn in the second iteration's prompts: they are drawn anew, to the same numbers
    file.write_text("\n".join([*lines[:16], lines[16].replace("0", "1", 1), lines[17][:30]]), encoding="utf-8")
    torn = run(tmp_path / "torn", *words)
    assert [line["objective/policy_loss"] for line in torn] == [line["objective/policy_loss"] for line in first]
    assert sorted(_read(file)) == sorted(json.loads(line)["prompt"] for line in lines)

    for i, changed in enumerate(("objective.missing_eos_penalty=0.5", "seed=1")):
        run(tmp_path / f"changed{i}", *words[:1], "training.iterations=1", changed)
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_prompts_that_the_initial_policy_never_solves_can_be_left_out(tmp_path):
    run(tmp_path / "run", "objective=a_star_po", "training.iterations=1", "advantage.drop_unsolved=true")
    (file,) = (tmp_path / "cache").iterdir()
    scores = _read(file)
    solved = [key for key, own in scores.items() if any(score > 0 for score in own)]
    assert len(solved) == 16 < len(scores)
