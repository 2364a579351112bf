"""Laws held against implementations.

This room may use every room above it in the list of CONTRIBUTING. It hands out `law` (`laws`), `verify` and what it is made of
(`checking`), mutation testing (`mutation_testing`), and the pytest plugin (`plugin`).
"""
