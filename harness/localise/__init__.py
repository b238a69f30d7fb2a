"""Which operator of a forward gives one row other bits when it computes more rows, or another tree, at a time."""

ENGINES = ("native", "torch", "module")
