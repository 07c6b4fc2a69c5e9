"""What a command sets in its process before torch is imported."""

from __future__ import annotations

import os

SPINS = "10000"


def share_the_processor() -> None:
    """Let waiting OpenMP threads go to sleep after a short spin, unless the user has set how they wait.

    By default they spin long enough to keep a core from whoever has work for it. Seconds an iteration of the built-in
    task, two cores: idle machine 0.55 by default, 0.58 with this, 1.1 when threads sleep at once (OMP_WAIT_POLICY=
    PASSIVE); beside two busy processes 6 to 27 by default, 1.6 with this. GNU OpenMP, which torch's Linux builds use,
    reads the variable as it loads.
    """
    if not os.environ.get("OMP_WAIT_POLICY"):
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
