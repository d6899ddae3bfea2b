"""What the layers of a model are given: sums over typical inputs, which methods and budgets read."""
