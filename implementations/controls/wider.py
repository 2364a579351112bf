"""float32 calls computed in float64 and rounded once: more accurate than asked for is not wrong."""

from __future__ import annotations

from typing import Any

import numpy as np

from qkverify.implementations.mutants.correct.call import Call
from qkverify.implementations.mutants.correct.gradients import BACKWARD
from qkverify.implementations.mutants.correct.planting import control
from qkverify.implementations.mutants.correct.textbook import TEXTBOOK


def widened(call: Call) -> Call:
    """The same call in float64."""
    arrays = {name: np.asarray(getattr(call, name), np.float64) for name in ("query", "key", "value")}
    return call.but(**arrays)


def wider_backward(call: Call, upstream: np.ndarray) -> Any:
    """The backward pass in float64."""
    return tuple(x.astype(call.dtype) for x in BACKWARD(widened(call), upstream.astype(np.float64)))


@control(backward=wider_backward, dtypes=("float32",))
def wider(call: Call) -> Any:
    """float64 inside."""
    output, lse = TEXTBOOK(widened(call).but(return_lse=True))
    output, lse = output.astype(call.dtype), lse.astype(call.dtype)
    return (output, lse) if call.return_lse else output
