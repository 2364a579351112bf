"""One attention problem, as data, and where its numbers come from.

It hands out `Problem` and the memory layouts (`attention_problem`), the distributions of numbers
(`distributions`, `activations`, `texts`), and choices made from one string of bytes (`byte_strategies`).
"""
