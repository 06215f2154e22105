"""Metrics: a file for each idea, which may declare several columns. They are found by looking into this folder."""
