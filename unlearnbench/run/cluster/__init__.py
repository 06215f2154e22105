"""A cluster as a run's launcher: cells are packed into jobs of Slurm, and their records gathered as they come.

`config` reads the user's file; `folder` keeps a run where all nodes see it; `packing` divides the cells; `task` is the
work of one job; `engine` submits jobs and asks about them; `standing` and `gathering` know what runs have and do;
`launcher` submits, watches and tries again.
"""
