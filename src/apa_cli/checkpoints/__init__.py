"""Saving a run so that it can go on, and exporting its policy."""
