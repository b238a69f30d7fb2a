"""Which operator of a forward gives one row other bits when it computes more rows, or another tree, at a time."""

ENGINES = ("native", "torch", "module")
ROW_INVARIANT = "row-invariant"
"""The one more that is looked at where it is asked for: the torch path in blocks, whose plain steps are slow."""
