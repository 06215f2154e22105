"""Data of a report: every number of a board, with its gaps and its uncertainty."""
