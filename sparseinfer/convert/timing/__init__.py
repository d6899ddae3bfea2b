"""Times candidates on this machine: measured, cached or predicted."""
