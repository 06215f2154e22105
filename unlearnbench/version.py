"""The version, importable without other modules."""

__version__ = "0.1.0"
