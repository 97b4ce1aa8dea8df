"""More than any model has: a larger number in a config is a typing error."""

MOST_LAYERS, MOST_UNITS = 10_000, 10_000_000
"""Of layers, and of entries of one activation, rows of a table, tokens of a block."""
