"""Pruning before, during and after training, and making up for what it has cost."""
