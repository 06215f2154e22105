"""Measuring: inputs of metrics, attacks, and the preparation of a dataset."""
