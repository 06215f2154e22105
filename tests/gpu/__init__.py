"""What needs a GPU, and the kit that takes evidence from one: README.md says how."""
