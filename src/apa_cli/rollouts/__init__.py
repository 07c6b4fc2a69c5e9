"""Sampling responses, the record of them, and their scores."""
