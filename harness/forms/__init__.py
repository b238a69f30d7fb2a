"""How a table and a plot are written, whatever is in them."""
