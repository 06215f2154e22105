"""Unlearn."""
