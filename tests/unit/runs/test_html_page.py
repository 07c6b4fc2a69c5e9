"""The page: whole in one file, and nothing in a run can break out of its place."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

import pytest
from run_folders import row, write_run

from apa_cli.commands.report import main

EVIL = "</script><script>alert('x')</script> & \"quoted\" </pre>"


@pytest.fixture
def text(tmp_path: Path) -> str:
    rows = [row(0, eval_reward=0.0, eval_kl=0.0), row(1, reward_mean=1.0, eval_reward=1.0, eval_kl=2.0)]
    good = write_run(tmp_path / "in" / "good", rows, overrides=(f"policy.path={EVIL}", "seed=0"))
    samples = [
        {"iteration": i, "source": "evaluation", "prompt": EVIL, "response": f"{EVIL}{i}", "score": i} for i in (0, 1)
    ]
    (good / "samples.jsonl").write_text("\n".join(map(json.dumps, samples)))
    write_run(tmp_path / "in" / "bad", [], finished=False, failed=EVIL)
    assert main([str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--title", EVIL]) == 0
    return (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_it_runs_its_own_script_alone(text: str):
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert text.count("<script") == text.count("</script") == 1
    policy = re.search(r'http-equiv="Content-Security-Policy"\s+content="([^"]*)"', text)
    assert policy is not None
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy[1]
    assert policy[1].startswith("default-src 'none';")
    assert text.index("Content-Security-Policy") < text.index("<title>")  # before anything that a run says
    assert '<table id="runs">' in text
    assert "#runs" in script


def test_it_fetches_nothing(text: str):
    for inside in ("http:", "https:", "<link", "@import", "url(", 'src="plots'):
        assert inside not in text, inside
    sources = re.findall(r'src="([^"]*)"', text)
    assert len(sources) == 3  # two pictures of all runs, one of the run that has metrics
    for source in sources:
        kind, data = source.split(",", 1)
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data, validate=True).startswith(b"\x89PNG")


def test_what_runs_say_is_text(text: str):
    assert (
        text.count("&lt;/script&gt;&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;") >= 6
    )  # title twice, reason, prompt, responses
