"""Tests: a folder for each room of the package, and what concerns them all here."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # of the checkout
