"""Training against a reward server: the same scores as in this process, and a server that does not last."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command import ROOT, Running, apa_train, environment, wait_until
from reward_server import Answer, lengths, scores, serving

SMALL = (
    *("rollout.batch_size=8", "training.minibatch_size=8", "training.iterations=3", "evaluation.prompts=0"),
    *("generation.max_new_tokens=8", "tracking.wandb.mode=disabled", "tracking.console=plain", "checkpoint.every=1"),
)


def served(url: str) -> tuple[str, ...]:
    return ("reward=http", f"reward.url={url}", *SMALL)


@pytest.fixture
def example_server():
    """scripts/serve_reward.py with the built-in reward model: its address."""
    command = [sys.executable, str(ROOT / "scripts" / "serve_reward.py"), "--model", "builtin:reviews/reward"]
    command += ["--port", "0", "--token-ids"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(REWARD_TOKEN="a-token-for-tests"),
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("serving builtin:reviews/reward: reward.url="), line
    yield line.strip().partition("reward.url=")[2]
    process.kill()
    process.wait()


def test_the_example_server_scores_as_the_model_does(
    tmp_path: Path, example_server: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("REWARD_TOKEN", "a-token-for-tests")
    token = ("reward.api_key_env=REWARD_TOKEN", "reward.batch_size=3", "evaluation.prompts=4")
    far = apa_train(tmp_path / "far", *served(example_server), *token)
    here = apa_train(tmp_path / "here", *SMALL, "evaluation.prompts=4")
    assert (far.code, here.code) == (0, 0), far.errors + here.errors
    assert len(far.metrics) == len(here.metrics) == 3
    for one, other in zip(far.metrics, here.metrics, strict=True):
        for name in ("reward/mean", "reward/std", "kl/to_init", "policy/entropy"):
            assert one[name] == pytest.approx(other[name], abs=1e-5), name
    rows = [[json.loads(line) for line in (run.folder / "samples.jsonl").open()] for run in (far, here)]
    assert [row["response"] for row in rows[0]] == [row["response"] for row in rows[1]]
    assert [row["score"] for row in rows[0]] == pytest.approx([row["score"] for row in rows[1]], abs=1e-5)
    written = b"".join(path.read_bytes() for path in far.folder.rglob("*") if path.is_file())
    assert b"a-token-for-tests" not in written


def test_a_server_that_dies_and_comes_back(tmp_path: Path):
    """The run saves and ends in one line; resumed, it is the run that nothing happened to."""
    with serving(lengths) as whole:
        reference = apa_train(tmp_path / "reference", *served(whole.url))
    assert reference.code == 0, reference.errors
    asked = 0

    def dying(request):
        nonlocal asked
        asked += 1
        return lengths(request) if asked <= 2 else Answer(b"out of memory", status=500)  # the probe is the first

    with serving(dying) as server:
        run = apa_train(tmp_path / "run", *served(server.url), "reward.retries=1")
        port = int(server.url.split(":")[2].split("/")[0])
    assert run.code == 2
    (line,) = [line for line in run.errors.splitlines() if line.startswith("apa-train: error: ")]
    assert line.startswith(
        f"apa-train: error: reward.url: {server.url} fails (500: out of memory), in 2 tries; start the server"
    )
    assert "Traceback" not in run.errors + run.output
    assert len(run.metrics) == 1
    down = apa_train(tmp_path / "run", f"resume={run.folder}", "reward.retries=0")
    assert down.code == 2
    assert "Connection refused" in down.errors
    with serving(lengths, port):
        again = apa_train(tmp_path / "run", f"resume={run.folder}")
    assert again.code == 0, again.errors
    names = ("reward/mean", "objective/policy_loss", "kl/to_init")
    assert [[m[n] for n in names] for m in again.metrics] == [[m[n] for n in names] for m in reference.metrics]


def test_ctrl_c_does_not_wait_for_an_answer(tmp_path: Path):
    asked = 0

    def slow(request):
        nonlocal asked
        asked += 1
        return lengths(request) if asked <= 2 else scores([0.0] * len(request["responses"]), delay=300)

    with serving(slow) as server:
        run = Running("apa-train", f"output_dir={tmp_path / 'run'}", *served(server.url))
        wait_until(lambda: asked == 3)
        run.signal(signal.SIGINT)
        done = run.finish(60)
    assert done.code == 130, done.errors
    assert (tmp_path / "run" / "checkpoints" / "latest").read_text() == "iter_000001\n"


def test_down_at_the_start_costs_no_time_and_leaves_no_folder(tmp_path: Path):
    with serving(lengths) as server:
        pass
    run = apa_train(tmp_path / "run", *served(server.url))
    assert run.code == 2
    assert run.output == ""
    (line,) = run.errors.splitlines()
    assert line.startswith(f"apa-train: error: reward.url: {server.url} cannot be reached: ")
    assert not run.folder.exists()
