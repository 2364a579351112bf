"""An implementation made callable, and its results with their bounds.

This room may use `problem`, `contract` and `rounding`. It hands out `Run` (`run`), the comparisons that a
law makes (`assertions`), calls in several threads (`concurrent_calls`), and corruption of what must not be read
(`hidden_value_corruption`).
"""
