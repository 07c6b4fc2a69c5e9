"""Range checks for the coefficients of the objectives.

Each takes its coefficients by name and raises ValueError naming the first one that is out of range. NaN and infinity
are always out of range.
"""

import math

__all__ = ["check_fraction", "check_non_negative", "check_positive"]


def check_positive(**coefficients: float) -> None:
    """Raise ValueError unless every coefficient is finite and above 0."""
    for name, value in coefficients.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a finite number above 0, got {value}")


def check_non_negative(**coefficients: float) -> None:
    """Raise ValueError unless every coefficient is finite and at least 0."""
    for name, value in coefficients.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be a finite number of at least 0, got {value}")


def check_fraction(**coefficients: float) -> None:
    """Raise ValueError unless every coefficient lies in [0, 1]."""
    for name, value in coefficients.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie between 0 and 1, got {value}")
