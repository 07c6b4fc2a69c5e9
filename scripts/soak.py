"""Kill runs many times, resume them each time, and compare every one with the run that nothing interrupted.

    python scripts/soak.py --kills 200

A longer version of tests/faults/test_kills.py with the same pieces, and with SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 among
the signals. Prints one summary line; exit code 1 where a run
differs in a metric or a weight.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from random import Random

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "faults")]

from runs import SMALL, VARIANTS, Kills, Runs, assert_same_run, kill_until_done  # noqa: E402

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="kills in all (default 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments at which runs are killed")
    arguments = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="apa_soak_") as place:
        server = Runs(Path(place) / "output.txt")
        kills, runs, different = soak(server, Path(place), arguments.kills, Random(arguments.seed))
    for line in different:
        print(line)
    minutes = (time.perf_counter() - started) / 60
    print(
        f"{kills.total} kills ({kills.at_fault_points} around a write or a rename, {kills.at_random_moments} at "
        f"a random moment) in {runs} runs: {runs - len(different)} identical to the uninterrupted run, "
        f"{len(different)} different; {minutes:.0f} min, seed {arguments.seed}, {platform.machine()}"
    )
    return int(bool(different))


def soak(server: Runs, place: Path, limit: int, draw: Random) -> tuple[Kills, int, list[str]]:
    """(kills, runs, what differs). Progress goes to stderr."""
    references, seconds = {}, 0.0
    for number, (name, overrides) in enumerate(VARIANTS.items()):
        references[name] = place / f"uninterrupted{number}"
        began = time.perf_counter()
        code = server.run(references[name], *SMALL, *overrides)
        assert code == 0, server.output.read_text()[-2000:]
        seconds = max(seconds, time.perf_counter() - began)
    kills, different = Kills(), []
    for run in itertools.count():
        if kills.total >= limit:
            return kills, run, different
        name = list(VARIANTS)[run % len(VARIANTS)]
        folder = place / f"run{run}"
        kill_until_done(
            server, folder, (*SMALL, *VARIANTS[name]), draw, kills, limit=limit, seconds=seconds, signals=SIGNALS
        )
        try:
            assert_same_run(folder, references[name])
        except AssertionError as error:
            different.append(f"run {run} ({name}): {error}")
        shutil.rmtree(folder)
        print(f"\r{kills.total} of {limit} kills, {run + 1} runs, {len(different)} different", end="", file=sys.stderr)
    raise AssertionError("unreachable")


if __name__ == "__main__":
    sys.exit(main())
