"""exp2(fma(s, c, -m c)), as compilers contract it and FlashAttention-2 writes it (softmax.h, `scale_apply_exp2`).

The product m c is rounded, s c is not: where s = m the exponent is that rounding error instead of zero, the same for the whole
row. It cancels in the quotient, until scores are so large that it overflows.
"""

from __future__ import annotations

import math

import torch

from qkverify.implementations.controls.stored_parts import checked, divided, per_query_head
from qkverify.implementations.mutants.correct.planting import register

Tensor = torch.Tensor


def fused_multiply_add(a: Tensor, b: float, c: Tensor) -> Tensor:
    """a b + c of float32 numbers, rounded once: a product of two of them is exact in float64."""
    return (a.double() * b + c.double()).float()


def contracted_exponent(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None) -> Tensor:
    """float32; scores in base 2, their maximum multiplied by itself."""
    checked(query, key, value)
    logits = query.float() @ per_query_head(key, query.shape[1]).float().mT
    factor = (max(query.shape[-1], 1) ** -0.5 if scale is None else scale) * math.log2(math.e)
    constant = float(torch.tensor(factor, dtype=torch.float32))
    top = (logits * math.copysign(1.0, constant)).amax(-1, keepdim=True) * math.copysign(1.0, constant) \
        if key.shape[2] else logits.new_zeros((*logits.shape[:3], 1))  # fmt: skip
    weights = torch.exp2(fused_multiply_add(logits, constant, -(top * constant)))
    values = per_query_head(value, query.shape[1]).float()
    return divided(weights.to(query.dtype).float() @ values, weights.sum(-1, keepdim=True)).to(query.dtype)


register(contracted_exponent, "control-contracted-exponent", arrays="torch", dtypes=("float32", "bfloat16", "float16"),
         masked_values="read", differentiable=False)  # fmt: skip
