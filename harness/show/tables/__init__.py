"""The tables of a ledger, a file a table."""
