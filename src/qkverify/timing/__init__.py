"""Times that can be believed: clocks, samples, workloads, statistics.

This room may use `verification` and the rooms before it. It hands out the grid of a report (`grid`), one group of cases timed
against each other (`measurement`), workloads (`workloads`), and comparisons (`comparison`).
"""
