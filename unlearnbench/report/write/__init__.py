"""Writers of a report: Markdown, LaTeX, CSV, the terminal, files."""
