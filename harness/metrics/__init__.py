"""The figures of records: what may be compared, how each figure is defined, its interval."""
