"""What a reader sees of a ledger: tables, plots, one page. Pure functions of records."""
