"""Planted keys, tokens and passwords: none of them may be in any byte that a command writes or prints."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from command import ROOT, Finished, run_command
from reward_server import Answer, lengths, serving
from wandb_server import wandb_server

PLANTED = {
    "HF_TOKEN": "hf_plantedHuggingFaceToken0123456789",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdefplanted0",
    "OPENAI_API_KEY": "sk-plantedOpenAI-0123456789-abcdefghij",
    "MY_SERVICE_PASSWORD": "planted-password-of-a-service",
    "DB_PASS": "planted-db-pass",
    "GITHUB_PAT": "planted-github-pat",
    "AUTH": "planted-auth",
    "SLACK_WEBHOOK": "planted-slack-webhook",
    "MY_API_KEY_PROD": "planted-key-of-production",
}
PATH_TOKEN = "planted-path-token"  # in the path of an address
URL_PASSWORD = "planted-url-password"
QUERY_KEY = "planted-query-key"
SECRETS = (*PLANTED.values(), URL_PASSWORD, QUERY_KEY, PATH_TOKEN)
QUICK = (
    *("rollout.batch_size=8", "training.minibatch_size=8", "training.iterations=1", "evaluation.prompts=2"),
    *("generation.max_new_tokens=8", "training.epochs_per_rollout=1"),
)


def run(command: str, *arguments: str, cwd: Path, **variables: Any) -> Finished:
    return run_command(command, *arguments, cwd=cwd, **PLANTED, **variables)


def assert_clean(folder: Path, *finished: Finished) -> None:
    places = {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    places |= {f"name of {path}": os.fsencode(path) for path in folder.rglob("*")}
    for number, done in enumerate(finished):
        places |= {f"stdout of {number}": done.output.encode(), f"stderr of {number}": done.errors.encode()}
    leaks = [(place, secret) for place, content in places.items() for secret in SECRETS if secret.encode() in content]
    assert not leaks


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    """An address with a password in it that happens to be a file, so that a run can be had from it."""
    address = f"http://me:{URL_PASSWORD}@host/prompts.jsonl"
    file = tmp_path / "cwd" / address
    file.parent.mkdir(parents=True)
    lines = (ROOT / "src/apa_cli/assets/reviews/prompts.jsonl").read_text().splitlines()[:40]
    file.write_text("\n".join(lines) + "\n")
    return address


@pytest.fixture
def cwd(tmp_path: Path) -> Path:
    folder = tmp_path / "cwd"
    folder.mkdir(exist_ok=True)
    (folder / "reward.py").write_text(
        "import os\n\n\n"
        "def fine(prompts, responses):\n    return [float(len(r)) for r in responses]\n\n\n"
        "def leaking(prompts, responses):\n"
        "    headers = dict(os.environ)\n"
        "    raise PermissionError('401: ' + ' '.join(headers[n] for n in "
        f"{tuple(PLANTED)!r}) + ' at https://me:{URL_PASSWORD}@host/score?api_key={QUERY_KEY}&n=1')\n"
    )
    return folder


def train(cwd: Path, prompts: str, *words: str, function: str, **variables: Any) -> Finished:
    """A small run with the prompts at this address and a reward function of the user's own."""
    own = ("config=own", "policy.path=builtin:reviews/policy", "reward.kind=function", "reward.path=null")
    data = (f'data.path="{prompts}"', "data.eval_path=null", f"reward.function={function}")
    return run("apa-train", *own, *data, *QUICK, *words, cwd=cwd, **variables)


def test_a_whole_run_its_evaluation_and_its_report(tmp_path: Path, cwd: Path, prompts: str):
    """Offline; metrics, samples, log, config, card, checkpoints, pictures, wandb's files, eval.json, report."""
    out = tmp_path / "out"
    words = (f"output_dir={out}/run", "tracking.wandb.mode=offline", "checkpoint.every=1")
    tags = f"tracking.wandb.tags=[{','.join(PLANTED.values())}]"
    trained = train(cwd, prompts, *words, tags, function="reward.py:fine", pictures=True)
    assert trained.code == 0, trained.errors
    judged = run("apa-eval", f"checkpoint={out}/run", "evaluation.prompts=2", f'data.path="{prompts}"', cwd=cwd)
    assert judged.code == 0, judged.errors
    reported = run("apa-report", f"{out}/run", "-o", f"{out}/report", cwd=cwd)
    assert reported.code == 0, reported.errors
    assert "***" in (out / "run" / "config.yaml").read_text()
    assert "***" in (out / "run" / "final" / "README.md").read_text()
    assert list(out.rglob("*.wandb"))
    assert_clean(out, trained, judged, reported)


def test_a_reward_whose_error_tells_everything(tmp_path: Path, cwd: Path, prompts: str):
    """With its traceback; without one in the sweep below."""
    out = tmp_path / "out"
    words = (f"output_dir={out}/run", "tracking.wandb.mode=offline")
    done = train(cwd, prompts, *words, function="reward.py:leaking", HYDRA_FULL_ERROR="1")
    assert done.code == 2, done.errors
    assert "raised PermissionError: 401: ***" in done.errors
    assert b"401: ***" in (out / "run" / "run.log").read_bytes()
    assert_clean(out, done)


def test_a_sweep_with_a_failing_member(tmp_path: Path, cwd: Path, prompts: str):
    out = tmp_path / "out"
    words = ("-m", f"output_dir={out}/sweep", "tracking.wandb.mode=disabled")
    done = train(cwd, prompts, *words, function="reward.py:fine,reward.py:leaking")
    assert done.code == 2, done.errors
    assert (out / "sweep" / "sweep.md").is_file()
    assert_clean(out, done)


def test_online_wandb_gets_its_key_and_nothing_else(tmp_path: Path, cwd: Path, prompts: str):
    out = tmp_path / "out"
    with wandb_server() as server:
        words = (f"output_dir={out}/run", "tracking.wandb.mode=online")
        done = train(cwd, prompts, *words, function="reward.py:fine", WANDB_BASE_URL=server.url)
        assert done.code == 0, done.errors
        assert server.runs()
        sent = b"\n".join(path.encode() + body for _, path, body in server.requests)
    assert b"***" in sent  # the configuration, without the address's password
    assert not [secret for secret in SECRETS if secret.encode() in sent]
    assert_clean(out, done)


@pytest.mark.parametrize(
    "wrong",
    [
        f'data.path="https://me:{URL_PASSWORD}@host/none.jsonl?token={QUERY_KEY}"',
        f"+reward.api_key={PLANTED['OPENAI_API_KEY']}",
        f"evaluation.judge.api_key={PLANTED['OPENAI_API_KEY']}",
        f"evaluation.judge.api_key_env={PLANTED['OPENAI_API_KEY']}",
        f"policy.path={PLANTED['HF_TOKEN']}",
        f"policy.revision={PLANTED['HF_TOKEN']}",
        f"training.iterations={PLANTED['HF_TOKEN']}",
        "tracking.wandb.project=${oc.env:MY_SERVICE_PASSWORD}",
    ],
)
def test_what_is_refused_does_not_repeat_it(tmp_path: Path, cwd: Path, wrong: str):
    out = tmp_path / "out"
    out.mkdir()
    quick = (*QUICK, "evaluation.prompts=0", "tracking.wandb.mode=disabled")
    done = run("apa-train", *quick, f"output_dir={out}/run", wrong, cwd=cwd)
    assert done.code == (0 if "revision" in wrong or "project" in wrong else 2), done.errors
    assert_clean(out, done)
    shutil.rmtree(out)


def test_a_token_in_the_path_of_a_reward_servers_address(tmp_path: Path, cwd: Path):
    """In a run, a sweep over it, a server that fails, and resuming, which asks for the address again."""
    out = tmp_path / "out"
    with serving(lengths) as server:
        url = f"{server.url}/{PATH_TOKEN}/score"
        served = (*QUICK, "tracking.wandb.mode=offline", "reward=http", f"reward.url={url}")
        trained = run("apa-train", *served, f"output_dir={out}/run", cwd=cwd)
        assert trained.code == 0, trained.errors
        resumed = run("apa-train", f"resume={out}/run", "training.iterations=2", cwd=cwd)
        assert resumed.code == 2
        assert "reward.url: its path is not stored in config.yaml" in resumed.errors
        again = run("apa-train", f"resume={out}/run", "training.iterations=2", f"reward.url={url}", cwd=cwd)
        assert again.code == 0, again.errors
        swept = run("apa-train", "-m", *served[:-1], f"reward.url={url},{url}/b", f"output_dir={out}/sweep", cwd=cwd)
        assert swept.code == 0, swept.errors
    with serving(lambda request: Answer(b"no", status=400)) as server:
        failed = run("apa-train", *served[:-1], f"reward.url={server.url}/{PATH_TOKEN}", f"output_dir={out}/f", cwd=cwd)
        assert failed.code == 2
    assert_clean(out, trained, resumed, again, swept, failed)
