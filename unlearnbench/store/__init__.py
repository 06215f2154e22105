"""The store: cells, records, artifacts, hashes, provenance."""
