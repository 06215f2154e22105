"""Tables of a report: their contents, independent of the output format."""
