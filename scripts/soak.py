"""Kill runs many times, resume them each time, and compare every one with the run that nothing interrupted.

    python scripts/soak.py --kills 200

A longer version of tests/faults/test_kills.py with the same pieces, and with SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 among
the signals. Prints one summary line; exit code 1 where a run differs in a metric or a weight.
"""

from __future__ import annotations

import argparse
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
    started, draw = time.perf_counter(), Random(arguments.seed)
    references, kills, different, count, seconds = {}, Kills(), [], 0, 0.0
    with tempfile.TemporaryDirectory(prefix="apa_soak_") as scratch:
        place = Path(scratch)
        server = Runs(place / "output.txt")
        for number, (name, overrides) in enumerate(VARIANTS.items()):
            references[name] = place / f"uninterrupted{number}"
            began = time.perf_counter()
            code = server.run(references[name], *SMALL, *overrides)
            assert code == 0, server.output.read_text()[-2000:]
            seconds = max(seconds, time.perf_counter() - began)
        while kills.total < arguments.kills:
            name, folder = list(VARIANTS)[count % len(VARIANTS)], place / f"run{count}"
            words, common = (*SMALL, *VARIANTS[name]), {"limit": arguments.kills, "seconds": seconds}
            kill_until_done(server, folder, words, draw, kills, signals=SIGNALS, **common)
            try:
                assert_same_run(folder, references[name])
            except AssertionError as error:
                different.append(f"run {count} ({name}): {error}")
            shutil.rmtree(folder)
            count += 1
            progress = f"{kills.total} of {arguments.kills} kills, {count} runs, {len(different)} different"
            print(f"\r{progress}", end="", file=sys.stderr)
    for line in different:
        print(line)
    minutes = (time.perf_counter() - started) / 60
    print(
        f"{kills.total} kills ({kills.at_fault_points} around a write or a rename, {kills.at_random_moments} at "
        f"a random moment) in {count} runs: {count - len(different)} identical to the uninterrupted run, "
        f"{len(different)} different; {minutes:.0f} min, seed {arguments.seed}, {platform.machine()}"
    )
    return int(bool(different))


if __name__ == "__main__":
    sys.exit(main())
