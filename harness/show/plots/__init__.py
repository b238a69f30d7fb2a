"""The plots of a ledger: their data, how each is drawn, and all of them."""
