"""Which run and which checkpoint `resume=` means, what may have changed since, and what a crash left."""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from refused import refusal
from tiny_models import make_config

from apa_cli.checkpoints.find import checkpoint_iteration, checkpoints_in
from apa_cli.checkpoints.manifest import check_manifest, listed_only, write_manifest
from apa_cli.checkpoints.ownership import RUN, RUN_BEGINS, record, recover
from apa_cli.errors import UserError
from apa_cli.files import files_in, partial_of, put_in_place, write_text
from apa_cli.training.resume import begin_from, expand, find_resumption, locate


def make_run(folder: Path, *names: str, **changes) -> Path:
    """A run's folder with (empty) checkpoints of these names."""
    folder.mkdir(parents=True)
    config = make_config("policy", **changes)
    record(folder, RUN, RUN_BEGINS)
    OmegaConf.save(OmegaConf.create(asdict(config)), folder / "config.yaml")
    for name in names:
        (folder / "checkpoints" / name / "trainer_state").mkdir(parents=True)
        (folder / "checkpoints" / name / "trainer_state" / "state.json").write_text(name)
        write_manifest(folder / "checkpoints" / name)
    return folder


def resumption(folder: Path, resume: str | None = "auto", **changes):
    warnings: list[str] = []
    config = make_config("policy", output_dir=str(folder), resume=resume, **changes)
    return find_resumption(config, warnings.append), warnings


def test_checkpoints_are_in_the_order_in_which_they_were_made(tmp_path):
    run = make_run(tmp_path / "run", "iter_000009", "iter_000010_part", "iter_000010", "iter_1000000")
    (run / "checkpoints" / ".iter_000011.partial").mkdir()
    (run / "checkpoints" / "iter_best").mkdir()
    names = [path.name for path in checkpoints_in(run / "checkpoints")]
    assert names == ["iter_000009", "iter_000010", "iter_000010_part", "iter_1000000"]
    assert [checkpoint_iteration(path) for path in checkpoints_in(run / "checkpoints")] == [9, 10, 10, 1000000]
    assert checkpoint_iteration(run / "checkpoints" / "iter_best") is None


def test_auto_begins_where_there_is_nothing(tmp_path):
    assert resumption(tmp_path / "new") == (None, [])
    run = make_run(tmp_path / "run")
    assert resumption(run) == resumption(run, None) == (None, [])  # it has begun and learnt nothing
    (run / "metrics.jsonl").write_text('{"iteration": 3}\n')
    found, _ = resumption(run)
    assert found is not None and found.checkpoint is None  # stopped before its first checkpoint


@pytest.mark.parametrize("damage", ["manifest.json", "trainer_state/state.json", "every"])
@pytest.mark.parametrize("resume", ["auto", "run"])
def test_a_run_without_a_whole_checkpoint_is_not_begun_again(tmp_path, damage, resume):
    run = make_run(tmp_path / "run", "iter_000001", "iter_000002")
    (run / "metrics.jsonl").write_text('{"iteration": 2}\n')
    for name in ("iter_000001", "iter_000002"):
        if damage == "every":
            shutil.rmtree(run / "checkpoints" / name)
        else:
            (run / "checkpoints" / name / damage).write_text("{}")
    (run / "checkpoints" / "latest").write_text("iter_000002\n")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"^resume: .*run has no complete checkpoint to resume from") as refused:
        resumption(run, str(run) if resume == "run" else resume)
    if damage != "every":
        assert "iter_000001 is left out: " in str(refused.value) and "iter_000002 is left out: " in str(refused.value)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_what_the_manifest_does_not_list_is_named_and_ignored(tmp_path):
    run = make_run(tmp_path / "run", "iter_000001")
    checkpoint = run / "checkpoints" / "iter_000001"
    assert listed_only(checkpoint) == checkpoint
    (checkpoint / "Thumbs.db").write_text("x")
    assert listed_only(checkpoint) == checkpoint
    (checkpoint / "policy").mkdir()
    (checkpoint / "policy" / "pytorch_model.bin").write_text("x")
    found, warnings = resumption(run)
    assert found is not None and found.checkpoint == checkpoint
    assert warnings == ["iter_000001 holds Thumbs.db, policy/pytorch_model.bin, not of its manifest: ignored"]
    assert files_in(listed_only(checkpoint)) == ["trainer_state/state.json"]


def test_what_changed_is_named_and_stops_unless_it_is_harmless(tmp_path):
    run = make_run(tmp_path / "run", "iter_000001")
    found, _ = resumption(run, checkpoint__every=7, tracking__samples=1, evaluation__every=3, training__iterations=500)
    assert found is not None
    assert set(found.changed) == {
        "checkpoint.every 50 → 7",
        "tracking.samples 4 → 1",
        "evaluation.every 20 → 3",
        "training.iterations 100 → 500",
    }
    other = {"objective__kl_lambda": 0.7, "policy__gradient_checkpointing": True, "tracking__samples": 1}
    assert refusal(resumption, run, **other) == (
        "resume: the configuration is not the run's: policy.gradient_checkpointing false → true, "
        "objective.kl_lambda 0.3 → 0.7; set it back, or add resume_allow_changes=true to accept the change"
    )
    found, _ = resumption(run, objective__kl_lambda=0.7, resume_allow_changes=True)
    assert found is not None and found.changed == ("objective.kl_lambda 0.3 → 0.7",)


def test_more_iterations_change_a_schedule_that_ends_with_them(tmp_path):
    run = make_run(tmp_path / "run", "iter_000001", optimizer__schedule="cosine")
    with pytest.raises(UserError, match=r"training\.iterations 100 → 200"):
        resumption(run, training__iterations=200, optimizer__schedule="cosine")


def test_a_key_that_the_runs_version_did_not_know_cannot_differ(tmp_path):
    run = make_run(tmp_path / "run", "iter_000001")
    config = OmegaConf.load(run / "config.yaml")
    del config.objective.score_clip
    OmegaConf.save(config, run / "config.yaml")
    found, _ = resumption(run, objective__score_clip=3.0)
    assert found is not None and found.changed == ()


def test_a_redacted_value_must_be_given_again(tmp_path):
    run = make_run(tmp_path / "run", "iter_000001")
    with pytest.raises(UserError, match=r"data\.subset: is a secret, which the run's config\.yaml does not hold"):
        resumption(run, data__subset="***")


def test_a_finished_run_has_nothing_left(tmp_path):
    run = make_run(tmp_path / "run", "iter_000100")
    (run / "summary.json").write_text(json.dumps({"iterations": 100}))
    assert resumption(run)[0].finished
    assert not resumption(run, training__iterations=200)[0].finished


def test_a_run_that_a_guard_ended_is_left_alone_by_auto_only(tmp_path):
    run = make_run(tmp_path / "run", "iter_000040")
    (run / "summary.json").write_text(json.dumps({"iterations": 40, "stopped": "KL above 10"}))
    assert resumption(run)[0].finished
    assert not resumption(run, str(run))[0].finished


def test_an_older_checkpoint_is_for_a_branch(tmp_path):
    run = make_run(tmp_path / "run", "iter_000001", "iter_000002")
    older = run / "checkpoints" / "iter_000001"
    (run / "metrics.jsonl").write_text('{"iteration": 1}\n')
    branch = tmp_path / "branch"
    branch.mkdir()
    found, _ = resumption(branch, str(older))
    assert found is not None and found.checkpoint == older
    begin_from(found, branch)
    assert (branch / "metrics.jsonl").read_text() == '{"iteration": 1}\n'
    assert (run / "metrics.jsonl").exists()


def test_the_command_line_of_a_resumed_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "run", "iter_000001")
    expected = [f"config={run}/config.yaml", f"output_dir={run}", "seed=1", f"resume={run}"]
    assert expand(["resume=run", "seed=1"], sweep=False) == expected
    given = ["config=mine", "output_dir=elsewhere", "resume=run"]
    assert expand(given, sweep=False) == ["config=mine", "output_dir=elsewhere", f"resume={run}"]
    for untouched in (["resume=auto", "seed=1"], ["resume=null"], []):
        assert expand(untouched, sweep=True) == untouched


def test_what_a_place_means(tmp_path):
    run = make_run(tmp_path / "run", "iter_000001")
    checkpoint = run / "checkpoints" / "iter_000001"
    (run / "checkpoints" / "best").symlink_to("iter_000001")  # of an older version
    (run / "checkpoints" / "latest").write_text("iter_000001\n")
    assert locate(str(run)) == locate(str(run / "checkpoints")) == (run, None)
    for named in (checkpoint, run / "checkpoints" / "latest", run / "checkpoints" / "best"):
        assert locate(str(named)) == (run, checkpoint)


def test_a_crash_between_two_renames_loses_nothing(tmp_path):
    folder = tmp_path / "checkpoints" / "iter_000001"
    for content in ("old", "new"):
        partial = partial_of(folder)
        (partial / "file").write_text(content)
        write_manifest(partial)
        put_in_place(partial, folder, ["file", "manifest.json"])
        assert (folder / "file").read_text() == content
        (folder / "mine.txt").write_text("the user's")
    theirs = {".iter_000002.old/x", ".mine.old/x", ".mine.partial/x", "iter_000001_backup/x", ".iter_000003.partial/x"}
    for name in theirs:
        (folder.parent / name).parent.mkdir()
        (folder.parent / name).write_text("x")
    os.replace(folder, folder.parent / ".iter_000001.old")  # died after the first of the two
    (partial_of(folder) / "file").write_text("half")
    (partial_of(tmp_path / "final") / "file").write_text("half")
    recover(tmp_path)
    assert not (tmp_path / ".final.partial").exists()
    ours = {"iter_000001/file", "iter_000001/manifest.json", "iter_000001/mine.txt"}
    assert set(files_in(folder.parent)) == ours | theirs
    assert (folder / "file").read_text() == "new"


def test_text_is_whole_or_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "config.yaml"
    write_text(path, "a: 1\n")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "a: 2\n")
    assert path.read_text() == "a: 1\n"


def test_a_link_out_of_the_checkpoint_is_refused(tmp_path):
    folder = tmp_path / "iter_000001"
    folder.mkdir()
    (tmp_path / "outside").write_text("x")
    (folder / "file").write_text("x")
    write_manifest(folder)
    check_manifest(folder, "checkpoint")
    (folder / "file").unlink()
    (folder / "file").symlink_to(tmp_path / "outside")  # the very same bytes
    with pytest.raises(UserError, match="leads out of the checkpoint"):
        check_manifest(folder, "checkpoint")
