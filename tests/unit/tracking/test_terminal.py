import io
import logging

import pytest
from rich.console import Console

from apa_cli.tracking.terminal import Terminal, choose_console, columns_of

METRICS = {
    "reward/mean": 1.23456,
    "kl/to_init": -0.5,
    "policy/entropy": 2.5,
    "policy/response_length": 31.25,
    "objective/policy_loss": 123456.0,
    "time/iteration": 1.5,
}


def plain(kind="plain", *, held_out=False, evaluator=False, **kwargs):
    out = io.StringIO()
    columns = columns_of(held_out=held_out, evaluator=evaluator)
    kwargs = {
        "iterations": 20,
        "start_iteration": 0,
        "columns": columns,
        "console": Console(file=out, width=80),
        **kwargs,
    }
    return Terminal(kind, **kwargs), out


def record(level, message, **extra):
    made = logging.LogRecord("apa_cli", level, "", 0, message, None, None)
    made.__dict__.update(extra)
    return made


def test_plain_is_one_header_and_one_aligned_line_an_iteration():
    shown, out = plain()
    with shown:
        shown.row(1, METRICS)
        shown.phase("generate", 1, 4)
        shown.row(2, {**METRICS, "reward/mean": float("nan")})
    assert out.getvalue().splitlines() == [
        " iter   reward      KL  entropy  length     loss  s/iter",
        " 1/20    1.235   -0.50    2.500    31.2  1.2e+05    1.50",
        " 2/20        –   -0.50    2.500    31.2  1.2e+05    1.50",
    ]


def test_notes_and_warnings(capsys):
    shown, out = plain()
    shown.handle(record(logging.INFO, "a note"))
    shown.handle(record(logging.INFO, "for the file", terminal=False))
    shown.handle(record(logging.WARNING, "take care"))
    assert out.getvalue() == "a note\n"
    assert capsys.readouterr().err == "warning: take care\n"


def test_quiet_says_nothing_but_warnings(capsys):
    shown, out = plain("quiet")
    with shown:
        if shown.level <= logging.INFO:
            shown.handle(record(logging.INFO, "a note"))
        shown.handle(record(logging.ERROR, "broken"))
        shown.row(1, METRICS)
        shown.lines(["the end"])
    assert out.getvalue() == ""
    assert capsys.readouterr().err == "error: broken\n"


def test_a_stray_print_and_a_note_stand_above_the_live_table(capsys):
    shown = Terminal("live", iterations=3, start_iteration=0, columns=columns_of(held_out=False, evaluator=False))
    with shown:
        shown.row(1, METRICS)
        print("stray")
        shown.handle(record(logging.WARNING, "take care [not markup]"))
    printed = capsys.readouterr().out
    assert "stray" in printed
    assert "take care [not markup]" in printed
    assert printed.index("stray") < printed.rindex("1.235")


def test_a_closed_pipe_ends_the_output_not_the_run():
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    shown, _ = plain(console=Console(file=Closed(), width=80))
    with shown:
        shown.row(1, METRICS)
        shown.row(2, METRICS)
        shown.lines(["the end"])


@pytest.mark.parametrize(
    ("kind", "is_terminal", "term", "expected"),
    [
        ("auto", True, "xterm", "live"),
        ("auto", True, "dumb", "plain"),
        ("auto", False, "xterm", "plain"),
        ("live", False, "xterm", "live"),
        ("quiet", True, "xterm", "quiet"),
    ],
)
def test_which_console(monkeypatch, kind, is_terminal, term, expected):
    monkeypatch.setattr("sys.stdout.isatty", lambda: is_terminal)
    monkeypatch.setenv("TERM", term)
    assert choose_console(kind) == expected
