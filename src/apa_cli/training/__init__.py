"""The loop, the update, the optimizer and its schedule."""
