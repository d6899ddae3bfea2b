"""Measurements on this machine: one layer (`layer`), whole models (`whole_model`), two models (`compare`)."""
