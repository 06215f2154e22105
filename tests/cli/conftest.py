"""The command line as a function."""

import sys

import pytest

from unlearnbench.cli import commands as cli


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Return a function that runs a command line in an empty folder: (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNLEARNBENCH_CACHE", str(tmp_path / "cache"))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["unlearnbench", *arguments])
        try:
            cli.main()
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
        return (status, *capsys.readouterr())

    return run
