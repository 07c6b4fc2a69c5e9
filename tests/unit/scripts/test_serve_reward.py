"""The example server beside the reward model in this process, and what it says to odd requests."""

from __future__ import annotations

import importlib.util
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from tiny_models import CPU, make_config

from apa_cli.config.schema import RewardConfig, ScorerConfig
from apa_cli.errors import UserError
from apa_cli.models.policy_loading import load_policy
from apa_cli.rewards.http import HttpReward
from apa_cli.rewards.record import FinishedResponses
from apa_cli.rewards.scorers import load_reward

ROOT = Path(__file__).parents[3]
spec = importlib.util.spec_from_file_location("serve_reward", ROOT / "scripts" / "serve_reward.py")
assert spec is not None
assert spec.loader is not None
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


@pytest.fixture
def serve(reward_dir):
    servers = []

    def begin(*options, token=None):
        arguments = script.parse(["--model", str(reward_dir), "--device", "cpu", *options])
        server = ThreadingHTTPServer(("127.0.0.1", 0), script.handler(script.load(arguments), token, "m"))
        server.RequestHandlerClass.log_message = lambda *_: None
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}/score"

    yield begin
    for server in servers:
        server.shutdown()
        server.server_close()


def ask(url, finished, **settings):
    return HttpReward(ScorerConfig(kind="http", url=url, retries=0, **settings), key="reward")(finished)


@pytest.mark.parametrize("options", [("--format", "text"), ("--format", "pair"), ("--token-ids",)])
def test_the_scores_are_those_of_the_model(policy_dir, reward_dir, serve, options):
    policy = load_policy(make_config(policy_dir()).policy, CPU)
    prompts, responses = ["the quick", "Human: hello", "fox"], [" brown fox", " there", ""]
    ids = [policy.tokenizer(p + r)["input_ids"] for p, r in zip(prompts, responses, strict=True)]
    finished = FinishedResponses(prompts=prompts, responses=responses, messages=None, columns={}, token_ids=ids)
    kind = options[1] if options[0] == "--format" else "auto"
    config = RewardConfig(path=str(reward_dir), format=kind)
    expected = load_reward(config, policy, CPU, microbatch_tokens=1000)(finished)
    assert ask(serve(*options), finished, batch_size=2) == pytest.approx(expected, abs=1e-6)
    assert len(set(expected)) == 3


def test_odd_requests_and_the_token(serve, monkeypatch):
    server = HttpReward(ScorerConfig(kind="http", url=serve(), retries=0), key="reward").server
    with pytest.raises(UserError, match=r"400: .*2 prompts and 1 responses"):
        server.ask({"prompts": ["a", "b"], "responses": ["c"]}, None, threading.Event())
    with pytest.raises(UserError, match=r"400: .*KeyError"):
        server.ask({"prompts": ["a", "b"]}, None, threading.Event())
    one = FinishedResponses(prompts=["a"], responses=["c"], messages=None, columns={}, token_ids=[[1]])
    guarded = serve(token="right")
    with pytest.raises(UserError, match=r"requires a token \(401\)"):
        ask(guarded, one)
    monkeypatch.setenv("REWARD_TOKEN", "wrong")
    with pytest.raises(UserError, match=r"that http:\S+ refuses \(401\); export REWARD_TOKEN anew"):
        ask(guarded, one, api_key_env="REWARD_TOKEN")
    monkeypatch.setenv("REWARD_TOKEN", "right")
    assert len(ask(guarded, one, api_key_env="REWARD_TOKEN")) == 1
