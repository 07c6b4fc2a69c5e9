"""The commands: each composes a configuration, calls one function and sets the exit code."""
