"""Measuring: what metrics are given, attacks, and what a dataset needs prepared."""
