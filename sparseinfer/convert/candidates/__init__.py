"""What could compute a product: dense ways and sparse layouts, ready to be timed, with predicted times."""
