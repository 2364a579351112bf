"""How many axes a function takes whose operation is one of rows (..., M): found of an undeclared one by a call of each number."""

from __future__ import annotations

from dataclasses import replace

from qkverify.contract import Implementation
from qkverify.probes.sentences import first_line
from qkverify.runs.run import Run
from qkverify.strategies.operation_cases import BARE, FILL, PreparedCall, example
from qkverify.strategies.operations import OPERATION_SPECS


def found(implementation: Implementation) -> Implementation:
    """Held to two axes, which is said, if a call with three raises and one with two does not."""
    spec = OPERATION_SPECS.get(implementation.operation)
    if implementation.declared or spec is None or "axes" not in spec.sizes:
        return implementation
    error = _error(implementation, 3)
    if error is None or _error(implementation, 2) is not None:
        return implementation
    said = f"arrays have two axes, (tokens, features): with three it raises {first_line(error)}"
    limits = {**implementation.size_limits, "axes": (2, 2)}
    return replace(implementation, size_limits=limits, remarks=(*implementation.remarks, said))


def _error(implementation: Implementation, axes: int) -> BaseException | None:
    """What a call of the simplest sizes raises."""
    run = Run(implementation, implementation.devices[0], implementation.dtypes[0])
    pools = {**FILL, **OPERATION_SPECS[implementation.operation].sizes, **BARE}
    drawn = {**{name: pool[0] for name, pool in pools.items()}, "axes": axes}
    try:
        PreparedCall(run, example(run, drawn))()
    except Exception as error:
        return error
    return None
