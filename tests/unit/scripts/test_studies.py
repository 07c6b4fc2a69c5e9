"""What the studies say about hand-made runs, what they would run, and where on the page it goes."""

from __future__ import annotations

import sys
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import yaml

from apa_cli.config.compose import compose_raw, to_train_config
from apa_cli.errors import UserError
from apa_cli.runs.folders import FINISHED, Run

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "scripts"))

import measure_methods as script  # noqa: E402
from studies import arithmetic, beside, family, page, paper, passes, runs, sentiment, stability  # noqa: E402

SIZE = runs.Size(quick=False, seeds=(1, 2), iterations=6, prompts=8)


def evaluation(
    iteration: int, kl: float, evaluator: float, entropy: float = 1.0, unique: float = 1.0
) -> dict[str, Any]:
    return {
        "iteration": iteration,
        "eval/kl": kl,
        "eval/evaluator": evaluator,
        "eval/reward": evaluator,
        "eval/entropy": entropy,
        "eval/unique_fraction": unique,
    }


def run(seed: int, kls: list[float], evaluations: list[dict[str, Any]], **more: float) -> Run:
    rows: dict[int, dict[str, Any]] = {row["iteration"]: dict(row) for row in evaluations}
    for iteration, kl in enumerate(kls, start=1):
        rows.setdefault(iteration, {"iteration": iteration}).update({"kl/to_init": kl, **more})
    return Run(folder=Path(f"r{seed}"), status=FINISHED, config={"seed": seed}, rows=[rows[i] for i in sorted(rows)])


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_run_is_lost_by_collapse_or_by_an_evaluator_no_better_than_before():
    def judged(**end: float) -> Run:
        return run(1, [], [evaluation(0, 0, 1.0), evaluation(6, 3.0, **{"evaluator": 1.1, **end})])

    assert [stability.lost(judged(**end)) for end in ({}, {"evaluator": 1.0}, {"entropy": 0.4}, {"unique": 0.8})] == [
        False,
        True,
        True,
        True,
    ]


def test_settings_that_two_studies_share_are_the_same():
    contents: dict[str, str] = {}
    for study in script.STUDIES.values():
        for setting in study.settings(SIZE):
            assert contents.setdefault(setting.name, setting.content(SIZE)) == setting.content(SIZE)
    assert {s.name for s in stability.settings(SIZE)} & {s.name for s in beside.STEER.settings(SIZE)} == {
        "apa_lambda0.1",
        "apa_lambda0.3",
    }


def test_trl_is_given_the_same_reward_prompts_and_judge(tmp_path: Path):
    pytest.importorskip("trl", reason="trl is not installed: pip install 'apa-cli[bench]'")
    size = runs.Size(quick=True, seeds=(3,), iterations=2, prompts=4)
    ours = runs.Setting(name="apa_x", recipe="reviews_apa_group", keys={}, evaluations=1)
    keys = {"optimizer.learning_rate": 1e-4, "objective.kl_coef": 0.04}
    theirs = runs.Setting(name="grpo_x", recipe="reviews_apa", objective="grpo", trl=True, keys=keys, evaluations=1)
    runs.make(iter([([ours, theirs], size.seeds)]), size, tmp_path, jobs=1)
    found = runs.read([ours, theirs], size.seeds, tmp_path)
    (mine,), (other,) = found["apa_x"], found["grpo_x"]
    assert [row["iteration"] for row in other.rows] == [0, 1, 2]
    judged = ("eval/evaluator", "eval/reward", "eval/entropy", "eval/kl_exact")
    assert [other.rows[0][name] for name in judged] == [mine.rows[0][name] for name in judged]
    # 64 responses of the same policy to prompts of one stream, under the same reward: means within chance.
    assert other.rows[1]["reward/mean"] == pytest.approx(mine.rows[1]["reward/mean"], abs=0.5)
    assert all(row["time/cpu"] > 0 for row in other.rows[1:])
    assert (other.config["trl.num_generations"], other.config["trl.beta"]) == (8, 0.04)


@pytest.mark.parametrize("study", script.STUDIES)
def test_every_setting_composes_and_no_two_share_a_name(study: str, tmp_path: Path):
    settings = script.STUDIES[study].settings(SIZE)
    names = [setting.name for setting in settings]
    assert len(set(names)) == len(names)
    (tmp_path / "config").mkdir()
    for setting in settings[:: max(1, len(settings) // 4)]:
        (tmp_path / "config" / f"{setting.name}.yaml").write_text(setting.content(SIZE), "utf-8")
        composed = compose_raw([f"config={tmp_path / 'config' / setting.name}.yaml", f"output_dir={tmp_path / 'x'}"])
        config = to_train_config(composed)
        assert config.training.iterations == 6
        for key, value in setting.keys.items():
            # the critic alone learns in at most a sixth of a run
            assert attrgetter(key)(config) == (1 if key == "value.warmup_iterations" else value)


def test_every_study_has_its_place_in_a_page():
    for name, study in script.STUDIES.items():
        assert f"<!-- {name}: " in (ROOT / getattr(study, "PAGE", script.PAGE)).read_text("utf-8")


def test_a_folder_without_runs_is_the_users_to_mend(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert script.main(["steer", "--report-only", "--output", str(tmp_path)]) == 2
    assert "no finished run of this study in it" in capsys.readouterr().err


def paper_runs() -> runs.Found:
    """Of a quick grid. At 2 nats APA earns 1 + seed / 100, PPO 0.5 + seed / 100; AWR has collapsed everywhere."""
    found, grid = runs.Found(), paper.grid(QUICK)
    ends = {"APA": (2.0, 1.0), "PPO": (1.0, 1.0), "AWR": (0.2, 0.3)}
    for each in grid.contestants:
        reward, entropy = ends[each.title]
        for cell in grid.cells(each):
            for seed in (0, 1, 2):
                end = reward + seed / 50 - (cell[1] != each.values[0]) * (1 if seed == 0 else -5)
                mine = run(seed, [2.0] * 6, [evaluation(0, 0, 0), evaluation(6, 4.0, end, entropy=entropy)])
                for row in mine.rows:
                    row["eval/distinct_2"] = 0.5  # type: ignore[index]
                found.setdefault(each.setting(cell).name, []).append(mine)
    return found


QUICK = runs.Size(quick=True, seeds=(1, 2), iterations=6, prompts=8)


def test_the_paper_is_judged_on_fresh_seeds_of_what_the_tuning_seed_chose(tmp_path: Path):
    text = "\n".join(paper.lines(paper_runs(), QUICK, tmp_path / "images"))
    # The other knobs are better with fresh seeds, which choose nothing.
    assert "- (a) evaluator at 2 nats: PPO is lower than APA by 0.50 ± 0.00 over 2 pairs of seeds" in text
    assert "- (c) entropy at the end: AWR is lower than APA by 0.700 ± 0.000 over" in text
    assert "- (a) evaluator at 5 nats: fewer than two seeds in which PPO and APA both reach it" in text
    assert "- (c) entropy at the end: no significant difference from APA: PPO; lower than APA: AWR." in text
    assert (
        "| APA | 0.0001 | λ 0.1 | learning rate, knob |" in text and "| AWR | 0.0001 | λ 0.5, all collapsed |" in text
    )
    assert "| AWR, λ 0.5 | **0.20 (4.00) collapsed** |" in text
    assert (tmp_path / "images" / "results_paper.png").stat().st_size > 5000


def put(found: runs.Found, name: str, ends: list[float], **more: float) -> None:
    """Runs of the tuning seed and of the seeds from 1 on, at 4 nats, with these rewards at the end."""
    found[name] = [run(seed, [], [evaluation(0, 0, 0), {**evaluation(6, 4.0, end), **more}])
                   for seed, end in enumerate(ends)]  # fmt: skip


@pytest.mark.parametrize("name", ["critic", "group", "offline", "rewards", "stability", "steer"])
def test_every_study_writes_all_its_settings_and_pictures(name: str, tmp_path: Path):
    study, found = script.STUDIES[name], runs.Found()
    settings = study.settings(SIZE)
    for number, setting in enumerate(settings):
        put(found, setting.name, [1.0 + number, 2.0 + number, 2.5 + number], **{"policy/response_length": 15.0})
        found[setting.name] = found[setting.name][1:]
    lines = study.lines(found, SIZE, tmp_path)
    rows = [line for line in lines if line.startswith("|") and "±" in line]
    assert len(rows) == len(settings) and not any("nan" in row or "inf" in row for row in rows)
    assert name == "stability" or (tmp_path / f"methods_{name}.png").stat().st_size > 5000


def test_presets_are_tuned_alike_and_compared_with_apa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(family, "PRESETS", ("apa", "awr", "ppo", "grpo"))
    whole, found = family.grid(SIZE), runs.Found()
    assert {len(whole.cells(each)) for each in whole.contestants} == {4}
    setting = whole.contestants[2].setting((3e-4, 0.2))
    assert "override /objective: ppo" in setting.content(SIZE) and "kl_coef: 0.2" in setting.content(SIZE)
    for each, ends in zip(whole.contestants[:3], ([1.0, 2.0, 2.0], [1.0, 1.0, 1.0], [1.0, 2.0, 9.0]), strict=True):
        put(found, each.setting((1e-4, each.values[1])).name, ends, **{"eval/distinct_2": 0.5})
        put(found, each.setting((3e-4, each.values[1])).name, [0.5, 50.0, 50.0])  # of fresh seeds, which choose nothing
    lines = family.lines(found, SIZE, tmp_path)
    for measure in ("evaluator at equal KL", "evaluator, mean over training"):
        assert f"- {measure}: lower than apa: awr; no significant difference from apa: ppo." in lines
    assert any(
        line.startswith("| awr | 0.0001 | λ 2 | learning rate, knob | 1.00 ± 0.00 | 4.00 ± 0.00 | 1.00 ± 0.00 | 0.50")
        for line in lines
    )
    assert any("TRL's GRPO was not run" in line for line in lines)
    theirs, cell = whole.contestants[-1], (3e-4, 0.05)
    assert theirs.values == family.contestant("grpo").values
    put(found, theirs.setting(cell).name, [1.0, 3.0, 3.0], **{"eval/distinct_2": 0.5})
    lines = family.lines(found, SIZE, tmp_path)
    beside = "lower than apa: awr; no significant difference from apa: ppo; higher than apa: TRL's GRPO."
    assert f"- evaluator at equal KL: {beside}" in lines
    assert any(line.startswith("| TRL's GRPO | 0.0003 | β 0.05 | learning rate, knob | 3.00 ± 0.00") for line in lines)
    with pytest.raises(UserError, match="objective=none_such: no such choice"):
        family.contestant("none_such")


def test_passes_go_on_from_the_cell_that_family_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(passes, "OBJECTIVES", {title: passes.OBJECTIVES[title] for title in ("apa", passes.BOUND)})
    found = runs.Found()
    put(found, "family_apa_lr0.0001_lambda0.3", [1.0, 2.0, 2.0])
    put(found, "passes8_apa_lr0.0001_lambda0.3", [0.0, 1.0, 1.0])
    settings = passes.chosen(found, SIZE)
    assert [settings["apa", count].name for count in (2, 8)] == list(found)  # 2 are the recipe's own
    bound = settings[passes.BOUND, 2]
    assert bound.keys == {"objective.target_bound": 3.0, "training.epochs_per_rollout": 2,
                          "optimizer.learning_rate": 1e-4, "objective.kl_lambda": 0.3}  # fmt: skip
    assert {setting.name for setting in settings.values()} <= {setting.name for setting in passes.settings(SIZE)}
    lines = passes.lines(found, SIZE, tmp_path)
    assert [cells(line)[:3] for line in lines if line.startswith("| apa |")] == [
        ["apa", "2", "2.00 ± 0.00"],
        ["apa", "8", "1.00 ± 0.00"],
    ]
    assert (tmp_path / "methods_passes.png").stat().st_size > 5000


def leave(folder: Path, name: str, **files: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "overrides.yaml").write_text(yaml.safe_dump([f"config={name}"]), "utf-8")
    (folder / "config.yaml").write_text("seed: 1", "utf-8")
    (folder / "checkpoints").mkdir()
    for file, text in files.items():
        (folder / f"{file}.json").write_text(text, "utf-8")
    return folder


def test_runs_are_read_by_setting_and_their_weights_dropped(tmp_path: Path):
    setting = beside.fixed(0.1)
    done = leave(tmp_path / "runs" / "done", setting.name, summary='{"iterations": 6}')
    going = leave(tmp_path / "runs" / "going", setting.name)
    leave(tmp_path / "runs" / "stopped", setting.name, failed='{"error": "loss is NaN"}')
    found = runs.read([setting], [1], tmp_path)
    assert [run.folder for run in found[setting.name]] == [done]
    assert found.failures["stopped"] == "loss is NaN" and set(found.failures) == {"going", "stopped"}
    said = page.circumstances(found, SIZE, planned=3, task="sums")
    assert "Only 1 of 3 runs are there" in said and "`stopped` (loss is NaN)" in said
    runs.drop_weights(tmp_path / "runs")
    assert not (done / "checkpoints").exists() and (going / "checkpoints").exists()
    runs.write_recipes(tmp_path, {setting.name: setting.content(SIZE)})
    with pytest.raises(UserError, match="holds other runs named"):
        runs.write_recipes(tmp_path, {setting.name: beside.fixed(0.2).content(SIZE)})


def test_kept_records_spare_a_run_and_do_not_say_where_it_ran(tmp_path: Path):
    setting = runs.Setting(name="a", recipe="reviews_apa", keys={"generation.max_new_tokens": 4}, evaluations=0)
    size, kept = runs.Size(quick=False, seeds=[1], iterations=1, prompts=4), tmp_path / "kept"
    for output in (tmp_path / "first", tmp_path / "second"):
        runs.restore(kept, output)
        runs.make(iter([([setting], size.seeds)]), size, output, jobs=1)
        runs.keep(output, kept)
    first, second = (runs.read([setting], size.seeds, tmp_path / name)["a"][0] for name in ("first", "second"))
    assert second.rows == first.rows and second.summary == first.summary
    texts = [file.read_text("utf-8") for file in kept.rglob("*") if file.is_file()]
    assert texts and not any(str(tmp_path) in text for text in texts)


def test_kept_records_of_other_settings_are_not_taken_for_these(tmp_path: Path):
    runs.write_recipes(tmp_path / "first", {"a": "# one"})
    folder = tmp_path / "first" / "runs" / "config=a,seed=1"
    folder.mkdir(parents=True)
    for name, text in {
        "config.yaml": "seed: 1",
        "overrides.yaml": "[config=a]",
        "summary.json": '{"iterations": 1}',
    }.items():
        (folder / name).write_text(text)
    runs.keep(tmp_path / "first", tmp_path / "kept")
    runs.restore(tmp_path / "kept", tmp_path / "second")
    with pytest.raises(UserError, match="holds other runs named a"):
        runs.write_recipes(tmp_path / "second", {"a": "# two"})


def test_accuracy_over_seconds_adds_up_the_iterations_between():
    rows = [{"iteration": 0, "eval/evaluator": 0.1}, {"iteration": 1, "time/cpu": 2.0},
            {"iteration": 2, "time/cpu": 3.0, "eval/evaluator": 0.5}]  # fmt: skip
    assert arithmetic.over_seconds(run(1, [], rows)) == [(0.0, 0.1), (5.0, 0.5)]


def test_the_frontier_is_drawn_at_the_rate_that_tuning_chose(tmp_path: Path):
    found = runs.Found()
    put(found, "sentiment_apa_lr0.0003_lambda0.1", [1.0])
    put(found, "sentiment_apa_lr0.001_lambda0.1", [2.0, 2.0, 3.0])
    put(found, "sentiment_apa_lr0.001_lambda1", [0.0, 1.0, 2.0])
    settings = sentiment.chosen(found, SIZE)
    assert {setting.keys["optimizer.learning_rate"] for setting in settings.values()} == {1e-3}
    assert [knob for _, knob in settings] == [0.05, 0.1, 0.3, 1.0]
    assert {setting.name for setting in settings.values()} <= {setting.name for setting in sentiment.settings(SIZE)}
    lines = sentiment.lines(found, SIZE, tmp_path)
    assert [cells(line)[:4] for line in lines if line.startswith("| APA")] == [
        ["APA", "λ 0.1", "0.001", "2.50 ± 6.35"],
        ["APA", "λ 1", "0.001", "1.50 ± 6.35"],
    ]
    assert (tmp_path / "results_sentiment.png").stat().st_size > 5000
