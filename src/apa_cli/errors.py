"""Errors that a line explains: those that are the user's to mend (exit code 2), and those that end a run (1)."""

from __future__ import annotations


class UserError(Exception):
    """Something the user gave is wrong: a key, a file, a model, a reward function.

    `where` names the key or file, `problem` says what is wrong, `remedy` what to do about it.
    """

    def __init__(self, where: str, problem: str, remedy: str = "") -> None:
        self.where, self.problem, self.remedy = where, problem, remedy
        text = f"{where}: {problem}" if where else problem
        super().__init__(" ".join(f"{text}; {remedy}".split()) if remedy else " ".join(text.split()))

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str, str]]:
        """Launchers send errors between processes by pickle."""
        return type(self), (self.where, self.problem, self.remedy)


class RunError(Exception):
    """A run had to stop, for a reason that one line explains and that is not the user's to mend. Exit code 1."""


class SaveError(RunError):
    """The end of a run could not be kept in its folder."""


class DivergedError(RunError):
    """Minibatch after minibatch held numbers that are not finite. None of them reached the weights.

    `culprit` is what was not finite first, `count` the minibatches in a row, `setting` where the run stood.
    """

    def __init__(self, culprit: str, count: int, setting: str) -> None:
        self.culprit, self.count, self.setting = culprit, count, setting
        times = f"{count} minibatches in a row were" if count > 1 else "a minibatch was"
        super().__init__(
            f"training diverged: {times} skipped (training.max_skipped), not finite: {culprit}; at {setting}; "
            "a lower optimizer.learning_rate may help"
        )

    def __reduce__(self) -> tuple[type[DivergedError], tuple[str, int, str]]:
        """Launchers send errors between processes by pickle."""
        return type(self), (self.culprit, self.count, self.setting)
