"""Tests: a folder for each package, and shared helpers here."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # of the checkout

# For `python -c`: the command line, with digits tiny and without the figures of its reports.
TINY_MAIN = f"""
import runpy
runpy.run_path("{ROOT}/tests/cells.py")["shrink_digits"]()
from unlearnbench.cli.commands import main
from unlearnbench.report.figures import drawing
drawing.FIGURES = {{}}
main()
"""
