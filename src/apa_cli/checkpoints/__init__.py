"""Save a run's state for resuming, and export its policy."""
