"""Candidates for a product: dense implementations and sparse layouts, ready to be timed or predicted."""
