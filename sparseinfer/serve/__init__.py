"""Converted models in inference servers."""
