"""How long candidates take on this machine: measured, remembered or predicted."""
