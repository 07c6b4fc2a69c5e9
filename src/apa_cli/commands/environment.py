"""What a command sets in its process before torch is imported."""

from __future__ import annotations

import os


def share_the_processor() -> None:
    """Let waiting OpenMP threads sleep instead of spinning, unless the user says otherwise.

    Spinning threads keep a core from whoever has work for it. On two cores beside two busy processes, iterations of
    the built-in task took 6 to 27 s with spinning and 1.5 to 2 s without. OpenMP reads the variable as it loads.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
