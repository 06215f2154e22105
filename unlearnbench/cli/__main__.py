"""`python -m unlearnbench.cli`: the command line."""

from unlearnbench.cli.commands import main

main()
