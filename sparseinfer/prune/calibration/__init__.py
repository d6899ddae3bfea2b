"""Calibration: statistics of the layers' inputs, summed over typical batches, for methods and budgets."""
