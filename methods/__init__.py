"""Unlearning methods, one file each. They are found by file name; nobody imports them by path."""
