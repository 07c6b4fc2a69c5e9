from apa_cli.tracking.report import Outcome, Summary, write_report
from apa_cli.tracking.samples import SamplePair


def test_outcomes_from_metrics():
    evaluation = {"eval/reward": 1.0, "eval/kl": 2.0, "eval/unique_fraction": 0.5, "eval/distinct_2": 0.1}
    assert Outcome.from_evaluation(evaluation) == Outcome(reward=1.0, kl=2.0, unique_fraction=0.5)
    rollout = {"reward/mean": 1.0, "kl/to_init": 2.0, "policy/entropy": 3.0, "policy/eos_rate": 0.5}
    assert Outcome.from_rollout(rollout) == Outcome(reward=1.0, kl=2.0, entropy=3.0, eos_rate=0.5)


def test_a_response_cannot_break_out_of_its_block(tmp_path, config):
    pair = SamplePair(prompt="p", before="```\n# heading", after="fine", score_before=0.0, score_after=0.0)
    summary = Summary(before=Outcome(), after=Outcome(), samples=[pair], iterations=1, seconds=1.0, run_dir=tmp_path)
    assert "````text\n```\n# heading\n````" in write_report(tmp_path, summary, config).read_text()
