"""Key and value sizes filled with zeros to a multiple of 16, as tensor cores want them."""

from __future__ import annotations

from typing import Any

import numpy as np

from qkverify.implementations.mutants.correct import textbook
from qkverify.implementations.mutants.correct.call import Call
from qkverify.implementations.mutants.correct.planting import control

MULTIPLE = 16


def padded(array: np.ndarray) -> np.ndarray:
    """(..., D) with zeros up to the next multiple."""
    return np.pad(array, [(0, 0)] * 3 + [(0, -array.shape[3] % MULTIPLE)])


@control()
def padded_head_size(call: Call) -> Any:
    """Sizes padded to 16. The scale is that of the size before padding."""
    textbook.prepare(call)
    arrays = {name: padded(getattr(call, name)) for name in ("query", "key", "value")}
    output, lse = textbook.TEXTBOOK(call.but(**arrays, scale=textbook.scale(call), return_lse=True))
    return (output[..., : call.E], lse) if call.return_lse else output[..., : call.E]
