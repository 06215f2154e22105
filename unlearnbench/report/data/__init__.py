"""Data of a report: every number of a board, with what is missing and how sure it is."""
