"""Surveys a model: its layers, their weights, what follows them, and one recorded run."""
