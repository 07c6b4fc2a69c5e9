"""Runs read back from their folders: tables, figures, pages."""
