"""A function of (B, L, M) that splits M into a number of heads of its own: with one head it would be judged, and accused."""

from __future__ import annotations

import numpy as np

from qkverify.errors import NothingVerified
from qkverify.probes.influence import output_of
from qkverify.probes.plain import Attempt
from qkverify.reference import attention, merge_heads, split_heads

ENOUGH = 1e-3  # relative: the outputs of other numbers of heads are nowhere near


def refused(fit: Attempt) -> None:
    """Raises NothingVerified where the first call, with one head, is right for another number of them."""
    if fit.right or len(fit.implementation.layout) != 3 or fit.problem.options:
        return
    got = output_of(fit)
    if got is None:
        return
    query, key, value = (
        np.asarray(x[:, 0], np.float64) for x in (fit.problem.query, fit.problem.key, fit.problem.value)
    )
    width, scale = query.shape[-1], float(np.abs(got).max(initial=1e-30))
    for heads in (n for n in range(2, width + 1) if width % n == 0 and value.shape[-1] % n == 0):
        split = attention(*(split_heads(x, heads) for x in (query, key, value)))
        if np.abs(merge_heads(split) - got[:, 0]).max(initial=0.0) < ENOUGH * scale:
            raise NothingVerified(
                f"{fit.implementation.name} splits the last axis into {heads} heads by itself, and on arrays of three axes qkverify "
                "judges one head\n  verify a function of (B, H, L, D), or one with a parameter for the number of heads, which is "
                "then given 1 (num_heads)"
            )
