"""`sparseinfer demo`: prunes, retrains, converts, checks and times a real sentence encoder."""
