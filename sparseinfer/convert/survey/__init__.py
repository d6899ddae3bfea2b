"""What there is in a model: layers, their weights, what follows them, and one run of it."""
