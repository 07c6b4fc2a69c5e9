"""`from apa_cli import train, evaluate`: the commands without a process of their own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from command import TINY
from refused import refusal

from apa_cli import UserError, evaluate, train

QUIET = (*TINY, "tracking.console=quiet")


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_and_its_evaluation_twice_and_in_a_thread(workdir: Path, capfd: pytest.CaptureFixture[str]):
    (workdir / "mine.yaml").write_text("defaults: [reviews_apa]\nobjective.kl_lambda: 0.7\n", encoding="utf-8")
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    first = train("mine.yaml", *QUIET, "output_dir=first")
    assert (first.run_dir, first.iterations, first.stopped) == (workdir / "first", 1, None)
    assert first.final_dir is not None
    assert (first.final_dir / "model.safetensors").is_file()
    assert first.after.kl is not None
    assert "kl_lambda: 0.7" in (first.run_dir / "config.yaml").read_text(encoding="utf-8")
    assert "resume=auto" not in (first.run_dir / "overrides.yaml").read_text(encoding="utf-8")

    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(train(Path("mine.yaml"), *QUIET, "output_dir=second")))
    thread.start()
    thread.join(120)
    [second] = found
    assert (second.before, second.after) == (first.before, first.after)  # type: ignore[attr-defined]

    again = train("mine.yaml", *QUIET, "output_dir=first", "resume=auto")  # nothing is left to do
    assert (again.after, again.seconds) == (first.after, first.seconds)

    judged = evaluate(first.run_dir, "evaluation.resamples=10")
    assert judged.folder == workdir / "first" / "evaluation" / "final"
    written = json.loads((judged.folder / "eval.json").read_text(encoding="utf-8"))
    names = [policy.name for policy in judged.policies]
    assert names == [policy["name"] for policy in written["policies"]]
    assert judged.policies[-1].figures["reward"].value == written["policies"][-1]["figures"]["reward"]["value"]
    assert {number: signal.getsignal(number) for number in signal.valid_signals()} == handlers
    output, errors = capfd.readouterr()
    assert errors == ""
    assert "reward" not in output


def test_ctrl_c_is_raised_after_a_last_checkpoint(workdir: Path):
    (workdir / "my.py").write_text(
        "import os, signal\nfrom pathlib import Path\n\n"
        "def reward(prompts, responses, **columns):\n"
        "    if sum(1 for line in open('run/metrics.jsonl')) == 2 and not Path('sent').exists():\n"
        "        Path('sent').touch()\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return [float(len(response)) for response in responses]\n",
        encoding="utf-8",
    )
    words = ("reward.kind=function", "reward.path=null", f"reward.function={workdir}/my.py:reward")
    words = (*words, *QUIET[1:], "output_dir=run", "training.iterations=3")
    with pytest.raises(KeyboardInterrupt) as caught:
        train(None, *words)
    assert type(caught.value) is KeyboardInterrupt  # Python's own handler raised it, which ends no process
    [checkpoint] = (workdir / "run" / "checkpoints").glob("iter_*")
    assert checkpoint.name in ("iter_000001", "iter_000002")
    assert train(None, *words, "resume=auto").iterations == 3


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("mine.yaml", "objective.kl_lamda=1"), "objective.kl_lamda: unknown key; did you mean objective.kl_lambda?"),
        (("nowhere.yaml",), "config=nowhere.yaml: no such file"),
        ((None, "objective.kl_lambda=0.1,0.3"), "objective.kl_lambda: several values"),
        ((None, "plan_only=true"), "plan_only: shows a plan, and trains nothing"),
        ((None, "resume=nowhere"), "resume: no folder nowhere"),
    ],
)
def test_what_is_wrong_is_raised(workdir: Path, capfd: pytest.CaptureFixture[str], words, line: str):
    (workdir / "mine.yaml").write_text("defaults: [reviews_apa]\n", encoding="utf-8")
    assert line in refusal(train, *words)
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in workdir.iterdir()] == ["mine.yaml"]


@pytest.mark.parametrize(
    ("words", "line"), [(("nowhere",), "nowhere"), ((".", "seeed=1"), "checkpoint"), (([],), "checkpoint: empty")]
)
def test_what_is_wrong_with_an_evaluation_is_raised(workdir: Path, words, line: str):
    with pytest.raises(UserError, match=line):
        evaluate(*words)
    assert list(workdir.iterdir()) == []


def test_what_is_given_twice_is_a_warning(workdir: Path):
    with pytest.warns(UserWarning, match="seed is given twice"), pytest.raises(UserError, match="seeed: unknown key"):
        train(None, "seed=1", "seed=2", "seeed=3")


def test_the_package_imports_nothing_heavy():
    code = "import sys, apa_cli; assert not {'torch', 'hydra', 'numpy'} & set(sys.modules); "
    code += "apa_cli.train; apa_cli.evaluate; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    import apa_cli

    assert {"train", "evaluate", "UserError"} <= set(dir(apa_cli))
    with pytest.raises(AttributeError, match="nonsense"):
        apa_cli.nonsense  # noqa: B018
