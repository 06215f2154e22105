"""A run: its plan, its workers, one cell, the staleness of records."""
