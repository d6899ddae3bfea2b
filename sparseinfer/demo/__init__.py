"""`sparseinfer demo`: a real sentence encoder, pruned, trained back, converted, checked and timed."""
