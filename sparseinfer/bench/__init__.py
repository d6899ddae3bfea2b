"""Measurements on this machine: one layer (`layer`), a whole model (`demo`), the installation (`doctor`)."""
