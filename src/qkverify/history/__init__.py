"""Runs of other days: kept small, and compared with the drift of the machine taken out.

This room may use `results` and `timing`. It hands out earlier runs (`earlier_runs`), `trends`, `machine_drift` and
`change_points`.
"""
