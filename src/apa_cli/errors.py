"""Errors that are the user's to mend. The commands print them as one line and exit with code 2."""

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
