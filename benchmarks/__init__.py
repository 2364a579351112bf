"""What is timed: one file for each operation, one test for each cell of its grid. Its cases are in `workloads/`, as TOML."""
