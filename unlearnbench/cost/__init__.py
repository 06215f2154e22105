"""Cost: time and memory of the timed phases, by named probes."""
