"""What a run writes for people: metrics, samples, pictures and a report; in its folder, on wandb, on the terminal."""

from apa_cli.tracking.metrics import CONTRACT_METRICS, read_metrics
from apa_cli.tracking.plots import draw_run
from apa_cli.tracking.report import Outcome, SamplePair, Summary, summary_lines, write_report
from apa_cli.tracking.samples import Sample
from apa_cli.tracking.secrets import redact
from apa_cli.tracking.tracker import Tracker

__all__ = [
    "CONTRACT_METRICS",
    "Outcome",
    "Sample",
    "SamplePair",
    "Summary",
    "Tracker",
    "draw_run",
    "read_metrics",
    "redact",
    "summary_lines",
    "write_report",
]
