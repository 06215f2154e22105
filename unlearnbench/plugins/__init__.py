"""Plugins: what they declare, how they are found, their cards."""
