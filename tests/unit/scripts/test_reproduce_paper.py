"""The comparison's numbers and verdicts on hand-worked runs, its page from folders, and what the script would run."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
from studies.comparison import (
    CONTRADICTED,
    SUPPORTED,
    UNDECIDED,
    Measure,
    at_level,
    back_and_forth,
    choose,
    collapsed,
    compare,
    last_kl,
    mean_height,
    measures,
    reward_at_kl,
    rollouts_until,
    settings_of,
)
from studies.comparison_figures import reward_curve
from studies.comparison_report import write_results
from studies.comparison_study import read_study

from apa_cli.config.compose import compose_raw, to_train_config
from apa_cli.errors import UserError
from apa_cli.runs.folders import FINISHED, Run
from apa_cli.runs.settings import Setting

SCRIPT = Path(__file__).parents[3] / "scripts" / "reproduce_paper.py"
spec = importlib.util.spec_from_file_location("reproduce_paper", SCRIPT)
assert spec is not None
assert spec.loader is not None
script = importlib.util.module_from_spec(spec)
sys.modules["reproduce_paper"] = script
spec.loader.exec_module(script)

DEFAULT_KNOB = {"apa": 0.3, "ppo": 0.05, "awr": 1.0}


def config(objective: str, seed: int, rate: float, knob: float | None) -> dict[str, object]:
    value = DEFAULT_KNOB[objective] if knob is None else knob
    return {
        "objective.name": objective,
        "objective.kl_coef" if objective == "ppo" else "objective.kl_lambda": value,
        "optimizer.learning_rate": rate,
        "seed": seed,
        "rollout.batch_size": 10,
        "policy.path": "tiny",
        "reward.path": "scores",
        "evaluation.reward.function": "grammar:sentiment",
        "evaluation.prompts": 8,
    }


def rows(evaluations, kls=(), *, entropy=(1.0, 0.9), unique=1.0):
    """One row an evaluation: (iteration, KL, evaluator); `kls` are of the rollouts 1, 2, …"""
    found = {}
    for iteration, kl, reward in evaluations:
        last = iteration == evaluations[-1][0]
        found[iteration] = {
            "iteration": iteration,
            "eval/kl": kl,
            "eval/evaluator": reward,
            "eval/reward": reward + 1,
            "eval/entropy": entropy[1 if last else 0],
            "eval/unique_fraction": unique,
            "eval/distinct_2": 0.5,
        }
    for iteration, kl in enumerate(kls, start=1):
        found.setdefault(iteration, {"iteration": iteration})["kl/to_init"] = kl
    return [found[iteration] for iteration in sorted(found)]


def run(evaluations=((0, 0, 0), (1, 1, 1)), kls=(), *, objective="apa", seed=0, rate=1e-4, knob=None, **more) -> Run:
    return Run(
        folder=Path(f"{objective}-{rate}-{knob}-{seed}"),
        status=FINISHED,
        config=config(objective, seed, rate, knob),
        rows=rows(evaluations, kls, **more),
    )


def test_reward_is_read_on_the_line_where_kl_first_comes_to_the_level() -> None:
    # 0 → 1.5 nats, then 1.5 → 3.5 with rewards 0.6 → 1.0: at 2 nats a quarter of the way. Later it falls back.
    one = run([(0, 0.0, 0.0), (5, 1.5, 0.6), (10, 3.5, 1.0), (15, 1.0, 5.0), (20, 3.0, 9.0)])
    assert reward_at_kl(one, 2.0) == pytest.approx(0.7)
    assert reward_at_kl(one, 3.5) == 1.0
    assert reward_at_kl(one, 5.0) is None  # not reached, and not extrapolated


def test_a_level_that_holds_from_the_start_takes_the_first_point() -> None:
    assert at_level([(2.0, 7.0), (3.0, 8.0)], 1.0) == 7.0
    assert at_level([], 1.0) is None


def test_rollouts_count_responses_until_the_evaluator_comes_to_a_level() -> None:
    one = run([(0, 0, 0.0), (4, 1, 0.8), (8, 2, 1.2)])  # 10 responses an iteration
    assert rollouts_until(one, 1.0) == pytest.approx(60.0)
    assert rollouts_until(one, 1.5) is None


def test_mean_height_is_the_area_over_its_width() -> None:
    # trapezia: 2·(0 + 1)/2 = 1 and 6·(1 + 2)/2 = 9; over a width of 8
    assert mean_height([(0, 0), (2, 1), (8, 2)]) == pytest.approx(10 / 8)
    assert mean_height([(0, 1)]) is None


def test_kl_at_the_end_is_of_the_last_tenth_and_back_and_forth_is_path_beyond_net_change() -> None:
    one = run(kls=[*[0.0] * 18, 4.0, 2.0])
    assert last_kl(one) == pytest.approx(3.0)
    assert back_and_forth(run(kls=[0, 1, 2, 5])) == pytest.approx(0.0)
    assert back_and_forth(run(kls=[0, 3, 1, 2])) == pytest.approx((3 + 2 + 1 - 2) / 3)
    assert last_kl(run()) is None
    assert back_and_forth(run()) is None


@pytest.mark.parametrize(
    ("entropy", "unique", "gone"),
    [((2.0, 1.0), 0.9, False), ((2.0, 0.99), 1.0, True), ((2.0, 2.0), 0.89, True), ((2.0, None), 1.0, True)],
)
def test_collapse_is_half_of_the_entropy_lost_or_a_tenth_of_the_responses_repeated(entropy, unique, gone) -> None:
    assert collapsed(run(entropy=entropy, unique=unique)) is gone


def test_the_best_setting_that_did_not_collapse_is_chosen() -> None:
    grid = [
        run([(0, 0, 0), (1, 1, 1.0)], knob=1.0),
        run([(0, 0, 0), (1, 1, 3.0)], knob=0.1, entropy=(1.0, 0.2)),
        run([(0, 0, 0), (1, 1, 2.0)], knob=0.3),
        run([(0, 0, 0), (1, 1, 1.9)], knob=0.3, rate=3e-4),
    ]
    choice = choose(settings_of(grid))
    assert (choice.setting.label, choice.collapse_free) == ("APA, λ 0.3", True)
    assert choice.setting.runs == (grid[2],)


def test_where_all_collapsed_the_best_of_all_is_chosen_and_said_so() -> None:
    grid = [run([(0, 0, 0), (1, 1, r)], knob=k, unique=0.5) for r, k in ((1.0, 1.0), (3.0, 0.1))]
    choice = choose(settings_of(grid))
    assert (choice.setting.knob, choice.collapse_free) == ("λ 0.1", False)
    with pytest.raises(ValueError, match="no run was judged"):
        choose([])


def pair(ours, theirs, direction=1):
    """A comparison of final evaluator rewards by seed."""
    final = Measure(
        claim="a", name="reward", short="reward", unit=" nats", digits=2, direction=direction,
        of=lambda run: run.last("eval/evaluator"),
    )  # fmt: skip
    made = [
        Setting(
            line=name.upper(),
            knob="k",
            runs=tuple(run([(0, 0, 0), (1, 1, v)], objective=name, seed=s) for s, v in values.items()),
        )
        for name, values in (("apa", ours), ("ppo", theirs))
    ]
    return compare(*made, final)


def test_differences_are_paired_by_seed_with_students_t() -> None:
    # Differences 1, 2, 3 of the seeds that both have: mean 2, deviation 1, t(2) = 4.303.
    difference = pair({1: 11.0, 2: 22.0, 3: 33.0, 4: 99.0}, {1: 10.0, 2: 20.0, 3: 30.0, 5: 0.0})
    assert difference.value is not None
    assert (difference.value.mean, difference.value.count) == (pytest.approx(2.0), 3)
    assert difference.value.half == pytest.approx(4.303 / 3**0.5)
    assert difference.verdict == UNDECIDED  # 2 ± 2.48
    assert difference.sentence() == "reward: APA − PPO = +2.00 ± 2.48 nats over 3 pairs of seeds."


@pytest.mark.parametrize(
    ("shift", "direction", "verdict", "words"),
    [
        (3.0, 1, SUPPORTED, "APA is higher than PPO by 3.00 ± 0.25 nats over 3 pairs of seeds."),
        (-3.0, 1, CONTRADICTED, "APA is lower than PPO by 3.00 ± 0.25 nats over 3 pairs of seeds."),
        (-3.0, -1, SUPPORTED, "APA is lower than PPO by 3.00 ± 0.25 nats over 3 pairs of seeds."),
        (3.0, -1, CONTRADICTED, "APA is higher than PPO by 3.00 ± 0.25 nats over 3 pairs of seeds."),
    ],
)
def test_a_claim_holds_only_where_the_interval_lies_on_its_side(shift, direction, verdict, words) -> None:
    # Differences shift − 0.1, shift, shift + 0.1: deviation 0.1, half 4.303 · 0.1 / √3 = 0.248.
    difference = pair({1: shift - 0.1, 2: shift, 3: shift + 0.1}, {1: 0.0, 2: 0.0, 3: 0.0}, direction)
    assert difference.verdict == verdict
    assert difference.sentence() == f"reward: {words}"


def test_too_few_pairs_or_no_difference_decide_nothing() -> None:
    alone = pair({1: 5.0}, {1: 0.0, 2: 0.0})
    assert alone.verdict == UNDECIDED
    assert alone.sentence().startswith("reward: fewer than two seeds in which APA and PPO both reach it")
    nobody = pair({1: 5.0}, {2: 0.0})
    assert nobody.value is None
    assert nobody.verdict == UNDECIDED
    same = pair({1: 1.0, 2: 2.0}, {1: 1.0, 2: 2.0})
    assert same.verdict == UNDECIDED
    assert "the same for APA and PPO over 2 pairs" in same.sentence()


def test_measures_point_the_way_of_the_claims() -> None:
    ways = {measure.name: measure.direction for measure in measures([1.0])}
    lower = {name for name, direction in ways.items() if direction == -1}
    assert lower == {"KL at the end", "back-and-forth of KL", "responses sampled until evaluator reward 1"}
    assert {f"evaluator reward at {level} nats" for level in (2, 5, 10)} <= ways.keys()


def test_the_curve_over_kl_ends_where_the_first_seed_does() -> None:
    pairs = Setting(
        line="APA",
        knob="λ 0.3",
        runs=(run([(0, 0, 0), (1, 4, 4)], seed=1), run([(0, 0, 2), (1, 2, 4)], seed=2)),
    )
    x, mean, low, high = reward_curve(pairs)
    assert (x[0], x[-1]) == (0, 2)
    assert (low[0], mean[0], high[0]) == (0, 1, 2)
    assert (low[-1], mean[-1], high[-1]) == (2, 3, 4)


# The page, from folders that look like a sweep's.

PLAN = {
    "recipes": {"apa": "reviews_apa", "ppo": "reviews_ppo", "awr": "reviews_awr"},
    "learning_rates": [1e-4, 3e-4],
    "knobs": {"apa": [0.1, 0.3], "ppo": [0.05], "awr": [1.0]},
    "seeds": 3,
    "iterations": 4,
    "evaluation_prompts": 8,
    "reward_levels": [1.0],
    "quick": False,
}


def write_run(output: Path, name: str, one: Run) -> None:
    folder = output / "runs" / name
    folder.mkdir(parents=True)
    tree: dict[str, object] = {}
    for key, value in one.config.items():
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})  # type: ignore[assignment]
        node[leaf] = value
    (folder / "config.yaml").write_text(json.dumps(tree), "utf-8")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in one.rows), "utf-8")
    (folder / "summary.json").write_text(json.dumps({"iterations": 4, "seconds": 30.0}), "utf-8")
    (folder / "versions.json").write_text(json.dumps({"torch": "2.0", "device": "CPU, 1 threads"}), "utf-8")


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """APA earns 2 at 4 nats (a tuned learning rate of 3e-4, λ 0.3), PPO 1 at 4 nats; AWR always collapses."""
    output = tmp_path / "paper"

    def write(objective, seed, rate, knob, reward, **more):
        evaluations = [(0, 0.0, 0.0), (2, 2.0, reward / 2 + seed / 100), (4, 4.0, reward)]
        one = run(evaluations, [0, 1, 3, 4], objective=objective, seed=seed, rate=rate, knob=knob, **more)
        write_run(output, f"{objective}-{rate:g}-{knob:g}-{seed}", one)

    for rate in (1e-4, 3e-4):
        for knob in (0.1, 0.3):
            write("apa", 0, rate, knob, 2.0 if (rate, knob) == (3e-4, 0.3) else 1.5)
        write("ppo", 0, rate, 0.05, 1.0 if rate == 1e-4 else 0.5)
        write("awr", 0, rate, 1.0, 0.2 if rate == 1e-4 else 0.1, entropy=(1.0, 0.3), unique=0.5)
    for seed in (1, 2, 3):
        write("apa", seed, 3e-4, 0.3, 2.0)
        if seed < 3:
            write("apa", seed, 3e-4, 0.1, 2.5)  # better than the chosen λ, which only the tuning seed chooses
        write("ppo", seed, 1e-4, 0.05, 1.0)
        write("awr", seed, 1e-4, 1.0, 0.2, entropy=(1.0, 0.3), unique=0.5)
    write("apa", 9, 3e-4, 0.3, 50.0)  # of no seed of this experiment
    write("ppo", 0, 1e-2, 0.05, 50.0)  # of no learning rate of it
    write("apa", 1, 1e-4, 0.3, 50.0)  # of a learning rate that was not chosen
    (output / "runs" / "stopped").mkdir()
    (output / "runs" / "stopped" / "failed.json").write_text(json.dumps({"error": "loss is NaN"}), "utf-8")
    about = {"cores": 2, "machine": "x86_64", "jobs": 2, "command": "python the-command", "wall_seconds": 600.0}
    (output / "experiment.json").write_text(json.dumps({"experiment": PLAN, **about}), "utf-8")
    return output


def section(text: str, title: str) -> str:
    return re.split(r"^## ", text.split(f"## {title}\n")[1], flags=re.MULTILINE)[0]


def test_the_page_says_what_the_runs_say(experiment: Path, tmp_path: Path) -> None:
    page = write_results(read_study(experiment), tmp_path / "docs" / "results.md")
    text = page.read_text("utf-8")
    assert "19 runs (19 planned)" in text  # 8 of the grid, 3 · 3 fresh ones, and 2 of the other λ
    assert "`python the-command`" in text
    assert "10 min 0 s of wall clock" in text
    assert "`stopped` (loss is NaN)" in text
    assert "quick" not in text
    # At 2 nats APA has 1 + seed/100, PPO 0.5 + seed/100; 5 nats nobody reaches.
    held = section(text, "What they support")
    assert "(a) evaluator reward at 2 nats: APA is higher than PPO by 0.50 ± 0.00 over 3 pairs of seeds" in held
    assert "(c) entropy at the end: APA is higher than AWR by 0.600 ± 0.000 nats" in held
    unsupported = section(text, "What these runs do not support")
    assert re.search(r"^\d+ of \d+ comparisons are not decided by these runs", unsupported, flags=re.MULTILINE)
    assert text.endswith("[tables/results.md](tables/results.md).\n")
    details = (page.parent / "tables" / "results.md").read_text("utf-8")
    assert "(a) evaluator reward at 5 nats: fewer than two seeds in which APA and PPO both reach it" in details
    assert "(c) entropy at the end: the same for APA and PPO over 3 pairs of seeds" in details
    assert "| **APA**, chosen | 0.0003 | λ 0.3 |" in section(details, "The tuning grid")
    assert (
        "**(a) Reward at equal KL.** Against PPO: supported: at 2 nats; not decided by these runs: at 5 nats, at 10"
        in (section(text, "In short"))
    )
    assert "| APA | 0.0003 | λ 0.3 | learning rate, knob | 2.00 | 2.00 ± 0.00 |" in text
    assert "Every AWR setting of the grid collapsed; the best of them was taken." in text
    assert "| AWR | 3 of 3 | 2 of 2 | 0.0001 with λ 1, 0.0003 with λ 1 |" in text
    assert "| APA | 0 of 3 | 0 of 4 | none |" in text
    assert "50.00" not in text + details  # runs that are not of this experiment
    for link in re.findall(r"\]\((images/[^)]+)\)", text):
        assert (page.parent / link).stat().st_size > 5000
    assert text.count("](images/results_") == 4


def test_a_quick_page_says_that_it_is_no_evidence(experiment: Path, tmp_path: Path) -> None:
    note = experiment / "experiment.json"
    content = json.loads(note.read_text("utf-8"))
    content["experiment"]["quick"] = True
    note.write_text(json.dumps(content), "utf-8")
    page = tmp_path / "results.md"
    assert script.main(["--report-only", "--output", str(experiment), "--results", str(page)]) == 0
    assert "Nothing on this page is evidence" in page.read_text("utf-8")


def test_a_folder_without_runs_is_the_users_to_mend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--report-only", "--output", str(tmp_path)]) == 2
    assert "no experiment.json in it" in capsys.readouterr().err
    (tmp_path / "experiment.json").write_text(json.dumps({"experiment": PLAN}), "utf-8")
    (tmp_path / "runs").mkdir()
    with pytest.raises(UserError, match="apa: no run of its tuning grid"):
        read_study(tmp_path)


# What would be run.


def test_the_whole_comparison_is_as_large_as_said() -> None:
    whole = script.experiment_of(script.parse([]))
    assert (whole.iterations, whole.seeds, whole.evaluation_prompts) == (60, 5, 128)
    assert whole.learning_rates == [3e-5, 1e-4, 3e-4]
    assert whole.size == 3 * (9 + 5 + 2 * 3)
    quick = script.experiment_of(script.parse(["--quick"]))
    assert quick.size == 3 * (2 + 2 + 2)
    assert script.parse(["--quick"]).results == "runs/paper_quick/results.md"
    assert script.parse([]).results.endswith("docs/results.md")


def test_every_setting_composes_to_what_its_name_says(tmp_path: Path) -> None:
    whole = script.experiment_of(script.parse([]))
    names = script.write_settings(whole, tmp_path)
    assert len(names) == len(set(names)) == 27
    for name, objective, rate, knob in [
        ("apa_lr3e-05_lambda0.1", "apa", 3e-5, 0.1),
        ("awr_lr0.0001_lambda2", "awr", 1e-4, 2.0),
        ("ppo_lr0.0003_beta0.02", "ppo", 3e-4, 0.02),
    ]:
        assert name in names
        composed = compose_raw([f"config={name}", "output_dir=x"], extra_folder=str(tmp_path / "settings"))
        made = to_train_config(composed)
        assert (made.objective.name, made.optimizer.learning_rate) == (objective, rate)
        assert (made.objective.kl_coef if objective == "ppo" else made.objective.kl_lambda) == knob
        assert (made.training.iterations, made.evaluation.every, made.evaluation.prompts) == (60, 5, 128)
        assert (made.checkpoint.every, made.tracking.wandb.mode) == (0, "disabled")


def test_other_recipes_need_learning_rates_an_evaluator_and_three_objectives(tmp_path: Path) -> None:
    other = script.experiment_of(script.parse(["--recipe", "hh_pythia160m", "--learning-rates", "3e-6,1e-6"]))
    assert (other.learning_rates, other.iterations, other.evaluation_prompts) == ([1e-6, 3e-6], 500, None)
    script.write_settings(other, tmp_path)
    composed = compose_raw(["config=ppo_lr1e-06_beta0.2", "output_dir=x"], extra_folder=str(tmp_path / "settings"))
    made = to_train_config(composed)
    assert (made.objective.kl_coef, made.objective.kl_target) == (0.2, None)  # a fixed β is PPO's knob
    assert made.evaluation.prompts == 280
    with pytest.raises(UserError, match="--learning-rates: no default"):
        script.experiment_of(script.parse(["--recipe", "hh_pythia160m"]))
    with pytest.raises(UserError, match="give one each"):
        script.recipes_of("reviews_apa,reviews_ppo,reviews_apa")
    blind = tmp_path / "blind.yaml"
    blind.write_text("defaults: [reviews_apa]\nevaluation: {reward: {kind: none, function: null}}\n", "utf-8")
    with pytest.raises(UserError, match="has no separate evaluator"):
        script.recipes_of(f"{blind},reviews_ppo,reviews_awr")
    mine = tmp_path / "mine.yaml"
    mine.write_text("defaults: [reviews_apa]\n", "utf-8")
    recipes = script.recipes_of(f"reviews_ppo,{mine},reviews_awr")
    assert recipes == {"apa": str(mine), "ppo": "reviews_ppo", "awr": "reviews_awr"}
    arguments = script.parse(["--recipe", ",".join(recipes.values()), "--learning-rates", "1e-4"])
    script.write_settings(script.experiment_of(arguments), tmp_path / "own")
    composed = compose_raw(["config=apa_lr0.0001_lambda1"], extra_folder=str(tmp_path / "own" / "settings"))
    assert to_train_config(composed).objective.kl_lambda == 1.0


def test_a_folder_keeps_one_experiment_and_its_time(tmp_path: Path) -> None:
    whole = script.experiment_of(script.parse([]))
    script.note(tmp_path, whole, command="first", jobs=2)
    kept = json.loads((tmp_path / "experiment.json").read_text("utf-8"))
    (tmp_path / "experiment.json").write_text(json.dumps({**kept, "wall_seconds": 7.0}), "utf-8")
    script.note(tmp_path, whole, command="second", jobs=2)
    assert json.loads((tmp_path / "experiment.json").read_text("utf-8"))["wall_seconds"] == 7.0
    shorter = script.experiment_of(script.parse(["--iterations", "6"]))
    with pytest.raises(UserError, match="holds an experiment with iterations 60, now 6"):
        script.note(tmp_path, shorter, command="third", jobs=2)


def test_weights_of_finished_runs_are_dropped_and_figures_kept(experiment: Path) -> None:
    done, going = experiment / "runs" / "apa-0.0003-0.3-1", experiment / "runs" / "going"
    going.mkdir()
    (going / "config.yaml").write_text("seed: 1", "utf-8")
    for folder in (done, going):
        (folder / "checkpoints" / "iter_000004").mkdir(parents=True)
    sys.modules["sweeps"].drop_weights(experiment / "runs")
    assert not (done / "checkpoints").exists()
    assert (done / "metrics.jsonl").exists()
    assert (going / "checkpoints").exists()
