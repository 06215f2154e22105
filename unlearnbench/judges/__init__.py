"""Judges and feature extractors: classifiers that look at generated images."""
