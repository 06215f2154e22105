"""Tables of a report: what stands in them, whatever they are written as."""
