"""What a finished response is worth: a model, a Python function, a server, or a weighted sum of several."""
