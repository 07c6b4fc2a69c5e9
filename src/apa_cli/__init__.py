"""Align a language model to a reward on one device: APA, PPO and AWR, with one command and one YAML file."""

__version__ = "0.1.0"
