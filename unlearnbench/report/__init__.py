"""Reports: tables, figures and pages of the records of a results folder. Reads the store and nothing else."""
