"""Tests: a folder for each package, and shared helpers here."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # of the checkout
