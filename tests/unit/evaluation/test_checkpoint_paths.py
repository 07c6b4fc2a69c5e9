"""What `checkpoint=` may name, and the one line that says what is wrong with it."""

import json

import pytest
import refused

from apa_cli.checkpoints.manifest import write_manifest
from apa_cli.evaluation.checkpoint_paths import find_checkpoints


def make_policy(folder, *, adapter=False):
    folder.mkdir(parents=True)
    (folder / ("adapter_config.json" if adapter else "config.json")).write_text("{}", encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"weights")


def make_checkpoint(run, iteration, *, adapter=False):
    folder = run / "checkpoints" / f"iter_{iteration:06d}"
    make_policy(folder / "policy", adapter=adapter)
    for name in ("value", "trainer_state"):
        (folder / name).mkdir()
        (folder / name / "state").write_bytes(b"state")
    write_manifest(folder)
    return folder


def make_run(folder, *, iterations=(2, 4), final=True, adapter=False):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 0\n", encoding="utf-8")
    lines = [json.dumps({"iteration": i}) + "\n" for i in range(max(iterations, default=0) + 1)]
    (folder / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
    for iteration in iterations:
        make_checkpoint(folder, iteration, adapter=adapter)
    if iterations:
        (folder / "checkpoints" / "latest").symlink_to(f"iter_{iterations[-1]:06d}", target_is_directory=True)
    if final:
        make_policy(folder / "final", adapter=adapter)
    return folder


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


def only(*places):
    (found,) = find_checkpoints([str(place) for place in places])
    return found


def names(*places):
    return [found.name for found in find_checkpoints([str(place) for place in places])]


def refusal(*places):
    line = refused.refusal(find_checkpoints, [str(place) for place in places])
    assert line.startswith("checkpoint: ")
    return line


@pytest.mark.parametrize(
    ("place", "name", "iteration"),
    [
        ("", "final", 4),
        ("final", "final", 4),
        ("checkpoints", "iter_000004", 4),
        ("checkpoints/latest", "iter_000004", 4),
        ("checkpoints/iter_000002", "iter_000002", 2),
        ("checkpoints/iter_000002/policy", "iter_000002", 2),
    ],
)
def test_places_in_a_run(run, place, name, iteration):
    found = only(run / place)
    assert (found.name, found.run_dir, found.iteration, found.is_adapter) == (name, run, iteration, False)
    assert found.policy == str(run / "final" if name == "final" else run / "checkpoints" / name / "policy")


def test_an_unfinished_run_is_its_latest_checkpoint(tmp_path):
    found = only(make_run(tmp_path / "run", final=False))
    assert (found.name, found.run_dir, found.iteration) == ("iter_000004", tmp_path / "run", 4)


def test_a_run_without_checkpoints(tmp_path):
    make_run(tmp_path / "run", iterations=(), final=False)
    assert "no checkpoint yet" in refusal(tmp_path / "run")


def test_an_adapter_is_told_from_a_model(tmp_path):
    run = make_run(tmp_path / "run", adapter=True)
    assert all(found.is_adapter for found in find_checkpoints([str(run), str(run / "checkpoints" / "iter_000002")]))


def test_all_checkpoints_of_a_run_each_once_in_order(run):
    make_checkpoint(run, 1000000)
    (run / "checkpoints" / "best").symlink_to("iter_000002", target_is_directory=True)
    partial = run / "checkpoints" / ".iter_000012.partial"
    partial.mkdir()
    assert names(run / "checkpoints" / "*") == ["iter_000002", "iter_000004", "iter_1000000"]


def test_what_is_named_twice_counts_once(run):
    checkpoints = run / "checkpoints"
    assert names(run, run / "final", checkpoints / "latest", checkpoints / "iter_000004") == ["final", "iter_000004"]


def test_a_name_may_hold_the_signs_of_a_pattern(tmp_path):
    make_run(tmp_path / "run[1]")
    assert only(tmp_path / "run[1]").name == "final"


def test_several_runs_are_told_apart(tmp_path):
    for name, iterations in (("a", (2,)), ("b", (3,))):
        make_run(tmp_path / name, iterations=iterations)
    assert names(tmp_path / "a", tmp_path / "b") == ["a/final", "b/final"]
    assert names(tmp_path / "*") == ["a/final", "b/final"]


def test_several_folders_of_one_name_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("x/model", "y/model"):
        make_policy(tmp_path / place)
    assert names("x/model", "y/model") == ["x/model", "y/model"]
    make_run(tmp_path / "one" / "seed_0")
    make_run(tmp_path / "two" / "seed_0")
    assert names("one/seed_0", "two/seed_0") == ["one/seed_0/final", "two/seed_0/final"]


@pytest.mark.parametrize("adapter", [False, True])
def test_any_model_folder(tmp_path, adapter):
    make_policy(tmp_path / "mine", adapter=adapter)
    found = only(tmp_path / "mine")
    assert (found.name, found.run_dir, found.iteration, found.is_adapter) == ("mine", None, None, adapter)


def test_a_model_below_a_folder_with_metrics_of_somebody_else(tmp_path):
    make_policy(tmp_path / "other" / "final")
    (tmp_path / "other" / "metrics.jsonl").write_text('{"iteration": 3}\n', encoding="utf-8")
    found = only(tmp_path / "other" / "final")
    assert (found.run_dir, found.iteration) == (None, None)


def test_a_hub_id_passes_through(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("gpt2", "organisation/model"):
        found = only(name)
        assert (found.name, found.policy, found.run_dir, found.iteration) == (name, name, None, None)


@pytest.mark.parametrize("place", ["/no/such/run", "./mine", "../mine", "~/no-such-run", "a/b/c", "runs/mine"])
def test_a_missing_folder(tmp_path, monkeypatch, place):
    """Which is no name on the Hub. What else may be wrong with a folder is in tests/bad_input."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert f"no folder {place}" in refusal(place)
