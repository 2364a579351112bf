"""Whether a loss is one number for all tokens: then it is called with one token at a time."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np

from qkverify.contract import Implementation, losses
from qkverify.runs.run import Run

TOKENS, CLASSES = 3, 5
REMARK = "returns one number for all tokens: called with one token at a time, so how it sums over tokens is not verified"


def found(implementation: Implementation) -> Implementation:
    """The implementation as one that returns the loss of each token. As it was where the call raises: the laws report that."""
    if implementation.operation != "cross_entropy" or implementation.declared:
        return implementation
    run = Run(implementation, dtype=implementation.dtypes[0])
    scores = np.random.default_rng(0).standard_normal((TOKENS, CLASSES)).astype(run.numpy_dtype)
    native = [run.framework.from_numpy(x, "cpu") for x in (scores, np.arange(TOKENS))]
    said = [f"{name}={value!r} is passed" for name, value in implementation.constants.items()]
    implementation = replace(implementation, remarks=(*implementation.remarks, *said))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            returned = run.invoke(native, {})
        except Exception:
            return implementation
    if not hasattr(returned, "shape") or tuple(returned.shape) not in ((), (1,)):
        return implementation
    function = losses.OfEachToken(implementation.function, implementation.arrays)
    return replace(implementation, function=function, remarks=(*implementation.remarks, REMARK))
