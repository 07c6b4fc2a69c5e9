"""How OpenMP's threads wait: ours unless the user has said."""

import os

import pytest

from apa_cli.commands.environment import SPINS, command, share_the_processor


@pytest.mark.parametrize(
    ("given", "spins"),
    [
        ({}, SPINS),
        ({"OMP_WAIT_POLICY": ""}, SPINS),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, None),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
    ],
)
def test_the_users_choice_stands(monkeypatch, given, spins):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    share_the_processor()
    assert os.environ.get("GOMP_SPINCOUNT") == spins


def test_a_library_that_cannot_tidy_up_after_a_signal_is_an_interrupt(capsys):
    @command("apa-train")
    def main(arguments):
        try:
            if arguments:
                raise KeyboardInterrupt
            found = 1
        finally:
            print(found)  # as libraries do: the name is not bound yet

    assert main(["signal"]) == 130
    assert capsys.readouterr().err == "apa-train: interrupted\n"
