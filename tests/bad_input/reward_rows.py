"""Reward functions that cannot be found, or that answer with something else than a number a response."""

from __future__ import annotations

from bad_input.damage import both, file
from bad_input.harness import Row

FUNCTIONS = """
import os
import shutil
import sys


def raises(prompts, responses):
    raise ZeroDivisionError("no such\\nthing")


def too_few(prompts, responses):
    return [0.0]


def texts(prompts, responses):
    return ["1.0"] * len(responses)


def nothing(prompts, responses):
    return None


def generator(prompts, responses):
    yield from (0.0 for _ in responses)


def imaginary(prompts, responses):
    return [0.0, 1j]


def one_argument(prompts):
    return [0.0] * len(prompts)


def three_arguments(prompts, responses, references):
    return [0.0] * len(prompts)


def reversed_roles(response, prompt):
    return [0.0] * len(prompt)


async def later(prompts, responses):
    return [0.0] * len(responses)


def leaves(prompts, responses):
    raise SystemExit(7)


class Judge:
    def __init__(self, prompts, responses):
        pass


class Odd(BaseException):
    pass


def odd(prompts, responses):
    raise Odd("x")


def key(prompts, responses):
    raise KeyboardInterrupt("mine")


def generator_exit(prompts, responses):
    raise GeneratorExit


def closes(prompts, responses):
    sys.stdout.close()
    return [0.0] * len(responses)


def deletes(prompts, responses):
    shutil.rmtree("run")
    os.environ.clear()
    return [0.0] * len(responses)


def tensor(prompts, responses):
    import torch

    return torch.zeros(len(responses), 2)

"""


def mine(name: str, function: str, line: str) -> Row:
    return Row(
        name=name, command=f"apa-train config=base.yaml reward.kind=function reward.path=null reward.function={function}",
        make=both(file("mine.py", FUNCTIONS), file("syntax.py", "def reward(:\n"),
                  file("exits.py", "import sys\nsys.exit(7)\n"), file("base.py", "raise GeneratorExit\n")),
        line=f"reward.function: {line}", begun=True,
    )  # fmt: skip


# Run by the script alone: they spoil the process that they run in. What is saved at the end may be left.
HOSTILE = {
    "closes": (2, "reward.function: mine.py:closes closed sys.stdout; leave it open: the run prints to it"),
    "deletes": (1, "the end of training could not be saved (the lines of metrics before it are not on the disk); …"),
}

ROWS = [
    mine("no such file", "gone.py:reward", "no file gone.py; give path/to/file.py:name"),
    mine("no such module", "no_such_module:reward", "importing no_such_module raised ModuleNotFoundError: …; fix the module or its name"),
    mine("a syntax error", "syntax.py:reward", "importing syntax.py raised SyntaxError: … (syntax.py, line 1); fix the module or its name"),
    mine("a file that exits", "exits.py:reward", "importing exits.py raised SystemExit: 7; fix the module or its name"),
    mine("no such function", "mine.py:rewards", "mine.py has no function rewards; it has raises, too_few, …"),
    mine("one argument", "mine.py:one_argument", "mine.py:one_argument does not take prompts and responses; define it as reward(prompts, responses, **columns)"),
    mine("an argument that is no column", "mine.py:three_arguments", "mine.py:three_arguments needs references, which is neither known nor a column of the data (it has …); name a column, …"),
    mine("a response before a prompt", "mine.py:reversed_roles", "mine.py:reversed_roles does not take prompts and responses; define it as reward(prompts, responses, **columns)"),
    mine("a class", "mine.py:Judge", "mine.py:Judge returned Judge; return a list with one number per response"),
    mine("raises", "mine.py:raises", "mine.py:raises raised ZeroDivisionError: no such thing; fix it: run.log, or APA_TRACEBACK=1, has the traceback"),
    mine("exits", "mine.py:leaves", "mine.py:leaves raised SystemExit: 7; fix it: …"),
    mine("raises what is no exception", "mine.py:odd", "mine.py:odd raised Odd: x; fix it: …"),
    mine("raises what is no exception, in the main thread", "mine.py:odd reward.timeout_seconds=null", "mine.py:odd raised Odd: x; fix it: …"),
    mine("ends as a generator does", "mine.py:generator_exit", "mine.py:generator_exit raised GeneratorExit; fix it: …"),
    mine("interrupts", "mine.py:key", "mine.py:key raised KeyboardInterrupt: mine; fix it: …"),
    mine("a file that raises what is no exception", "base.py:f", "importing base.py raised GeneratorExit; fix the module or its name"),
    mine("too few", "mine.py:too_few", "mine.py:too_few returned 1 scores for 2 responses; return one number per response"),
    mine("texts", "mine.py:texts", "mine.py:texts returned '1.0' for row 0; return finite numbers"),
    mine("nothing", "mine.py:nothing", "mine.py:nothing returned NoneType; return a list with one number per response"),
    mine("a generator", "mine.py:generator", "mine.py:generator returned generator; return a list with one number per response"),
    mine("a coroutine", "mine.py:later", "mine.py:later returned coroutine; return a list with one number per response"),
    mine("a tensor of two columns", "mine.py:tensor", "mine.py:tensor returned [0.0, 0.0] for row 0; return finite numbers"),
    mine("a complex number", "mine.py:imaginary", "mine.py:imaginary returned 1j for row 1; return finite numbers"),
]  # fmt: skip
