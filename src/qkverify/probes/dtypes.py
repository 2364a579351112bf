"""The dtype of what takes no array and no dtype: that of its result, whatever is asked."""

from __future__ import annotations

from dataclasses import replace

from qkverify.contract import DTYPES, Implementation
from qkverify.runs.run import Run

CALLS = {
    "positional_encoding": (2, 4),
    "alibi_slopes": (4,),
}  # arguments, which are the shape of the result too


def of_result(implementation: Implementation) -> Implementation:
    """The implementation with the one dtype that its result has, if neither an argument nor a keyword decides that.

    As it was for every other operation, and where the call raises.
    """
    arguments = CALLS.get(implementation.operation)
    if arguments is None or "dtype" in implementation.parameters:
        return implementation
    try:
        dtype = Run(implementation).call(*arguments, shape=arguments).dtype.name
    except Exception:  # the law that meets the same error reports it
        return implementation
    return replace(implementation, dtypes=(dtype,)) if dtype in DTYPES else implementation
