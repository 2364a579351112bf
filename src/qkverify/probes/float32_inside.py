"""Another operation than attention whose result in float64 is as exact as float32, because the function computes in float32.

`x.float()` before a norm and `.to(dtype)` after it is how most models write it. Such a function is right in every other dtype;
in float64 it is not verified, as attention of that kind is not (`smoke`), and that is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from qkverify.contract import Implementation
from qkverify.contract.operations import DESCRIBED
from qkverify.probes import operation_conventions, operation_rounding, sentences
from qkverify.probes.choice import Choice
from qkverify.rounding import Precision
from qkverify.runs.run import Run
from qkverify.strategies.operation_cases import OperationCall, PreparedCall

CALLS = 12


def found(implementation: Implementation) -> Implementation:
    """The function without float64, if torch code makes float32 of it and its results are right by the bounds of float32 alone.
    As it was where a call raises."""
    offered = {"float32", "float64"} <= set(implementation.dtypes)
    if implementation.declared or implementation.arrays != "torch" or not offered:
        return implementation
    try:
        inside = _computes_in_float32(implementation)
    except Exception:  # the law that meets the same error reports it
        return implementation
    if not inside:
        return implementation
    refused = {"float64": f"{sentences.RESULT} as exact as float32, and no more"}
    return replace(
        implementation,
        dtypes=tuple(dtype for dtype in implementation.dtypes if dtype != "float64"),
        refused_dtypes={**implementation.refused_dtypes, **refused},
        remarks=(*implementation.remarks, *sentences.refused(refused)),
    )


def _computes_in_float32(implementation: Implementation) -> bool:
    device, narrow = implementation.devices[0], Precision.plain("float32")
    choices = operation_conventions.left_out(implementation, Run(implementation, device, "float32"))
    semantics = _values(choices)
    wide = Run(implementation, device, "float64", semantics)
    if "layout" in DESCRIBED[implementation.operation].defaults and operation_rounding.angles(wide):
        return False  # its angles alone are
    judged = Run(implementation, device, "float64", semantics, narrow, narrow)
    calls = [_of_float32(call) for call in operation_rounding.calls_of(wide)[:CALLS]]
    results = [PreparedCall(wide, call).results() for call in calls]
    if operation_rounding.hold(wide, results, [call.exact(wide) for call in calls]):
        return False
    if not operation_rounding.hold(judged, results, [call.exact(judged) for call in calls]):
        return False
    from qkverify.contract.frameworks.torch_narrowing import narrows  # here: it loads torch

    return narrows(lambda: PreparedCall(wide, calls[0]).results())


def _values(choices: Mapping[str, Choice]) -> dict[str, str]:
    return {name: choice.value for name, choice in choices.items()}


def _of_float32(call: OperationCall) -> OperationCall:
    """The same call with numbers that float32 has, so that no rounding of the inputs is in the result."""
    return call.but({name: _rounded(x) for name, x in call.arrays.items()})


def _rounded(x: np.ndarray) -> Any:
    return x.astype(np.float32).astype(x.dtype) if x.dtype == np.float64 else x
