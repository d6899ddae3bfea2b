"""Pruning before and during training, and recovery of quality after pruning."""
