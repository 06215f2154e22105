"""Unlearning methods, one file each. They are found by file name and not imported by path."""
