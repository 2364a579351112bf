"""Operation by operation in half precision, differentiated by autograd: exp, sum, division, and the maximum too.

The gradient of the maximum is zero on paper. In half precision it is the sum of what was rounded in the gradients of a row, and
autograd adds it to that of the largest score. Many teach attention so, with `scores - scores.amax(-1, keepdim=True)`.
"""

from __future__ import annotations

import torch

from qkverify.implementations.controls.stored_parts import checked, divided, exponentials, per_query_head
from qkverify.implementations.mutants.correct.planting import register

Tensor = torch.Tensor
HALF = ("bfloat16", "float16")


def in_steps(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None) -> Tensor:
    """The sum of the weights divides at the end; every result has the dtype of the arguments."""
    checked(query, key, value)
    key, value = (per_query_head(x, query.shape[1]) for x in (key, value))
    _, weights = exponentials(query @ key.mT * (max(query.shape[-1], 1) ** -0.5 if scale is None else scale))
    return divided(weights @ value, weights.sum(-1, keepdim=True))


def softmax(scores: Tensor) -> Tensor:
    """The softmax of the last axis."""
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    return weights / weights.sum(-1, keepdim=True)


register(in_steps, "control-in-steps", arrays="torch", dtypes=HALF, masked_values="read", differentiable=True)
register(softmax, "control-softmax-in-steps", operation="softmax", arrays="torch", dtypes=HALF)
