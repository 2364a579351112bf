"""How an implementation rounds: `Precision`, and the models that have a name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qkverify.rounding.formats import FLOAT32, FORMATS, TF32, Format

Array = Any  # float64 ndarray, or the scalar 0.0 for an error that is nowhere


@dataclass(frozen=True)
class Precision:
    """How an implementation rounds.

    operand      format that computed operands of a matrix product are rounded to
    accumulate   format of the accumulators of sums and matrix products
    elementwise  format that every elementwise result is rounded to
    output       format of what is stored
    exp_ulps     error of exp and tanh, in unit roundoffs of `accumulate` (vectorised ones reach 20)
    fast_exp     relative error that an exponential may have beyond that, where only weights in half precision are made of it
    trig_ulps    error of sin and cos, likewise (SLEEF's vector versions stay within 3.5)
    folded       roundings of scale factors that may have been multiplied into the operands of the scores
    tile         fewest keys in a tile of an online softmax: a sum over n keys is rescaled at most ceil(n / tile) times
    parts        format that the gradients of single query heads are stored in before those that share a key are added, as
                 FlashAttention-2 does; None: as every elementwise result. Op by op, so may be the sums of some of them
    splits       format that the results of splits of the keys are stored in before they are merged by their log-sum-exps, as
                 cascade and ring attention do; None: they stay in accumulators
    row_sum      format that weights are rounded to before the sum of a row is made of them, as FlashInfer does: the weights
                 that meet the values then add up to one; None: the sum is made of the exponentials
    contracted   the largest score times a constant is rounded before a fused multiply-add takes it from the scores times that, as
                 compilers contract exp2(s c - m c): s - m is then not zero where s = m, but anything up to u |s|, the same for a
                 whole row. Past `largest_score` that is an overflow, and nothing is said
    in_sequence  results of tiles are merged one after the other by their log-sum-exps, and each of those is rounded: a relative
                 error of u |log-sum-exp| in the weights for each tile, instead of two altogether
    centred      the mean of the keys is subtracted from them before they meet the queries (SageAttention). Exact on paper;
                 but the differences are rounded, and so are scores of another size. Where a key is much smaller than the mean
                 that exceeds what the other fields allow, in every format: replace(Precision.fused("bfloat16"), centred=True).
                 A gradient that is rounded once more on its way through the centring is not covered.
    scaled_tiny  op by op, the error of an input that is multiplied by the scale and stored where that underflows, before it meets
                 the other operand of a product; in units of the input itself. See `with_scaled_inputs`
    """

    operand: Format
    accumulate: Format
    elementwise: Format
    output: Format
    exp_ulps: float = 20.0
    fast_exp: float = 0.0
    trig_ulps: float = 4.0
    tile: int = 16
    folded: int = 4
    parts: Format | None = None
    splits: Format | None = None
    row_sum: Format | None = None
    contracted: bool = False
    in_sequence: bool = False
    centred: bool = False
    scaled_tiny: float = 0.0

    @property
    def op_by_op(self) -> bool:
        """Whether elementwise results are rounded to less than what sums are accumulated in: every operation stores its own."""
        return self.elementwise.unit > self.accumulate.unit

    @property
    def largest_score(self) -> float:
        """The magnitude of a score up to which no weight overflows because its exponent is not exactly zero or below.

        An exponent is wrong by twice u |s| at most; half the range of the narrowest format is left to sums of weights.
        """
        if not self.contracted:
            return math.inf
        room = math.log(min(self.operand.huge, self.accumulate.huge)) / 2
        return room / (2 * self.accumulate.unit)

    def of_centred(self, keys: Array) -> Array:
        """What `centred` adds to keys (..., K, D), as an error of theirs: each is rounded as large as it and the largest are.

        The differences are computed, rounded as an operand, multiplied, summed over D and scaled; the mean itself moves all
        scores of a row alike, which changes nothing.
        """
        size = np.abs(keys)
        largest = size.max(axis=-2, keepdims=True, initial=0.0)
        roundings = self.operand.unit + 3 * self.elementwise.unit
        roundings += (keys.shape[-1] + 2 + self.folded) * self.accumulate.unit
        return roundings * (size + largest)

    @classmethod
    def plain(cls, dtype: str) -> Precision:
        """Everything in one format: float64 or float32 code."""
        return cls(FORMATS[dtype], FORMATS[dtype], FORMATS[dtype], FORMATS[dtype])

    @classmethod
    def fused(cls, dtype: str) -> Precision:
        """A fused kernel: float32 inside, computed matrix operands rounded to the storage format, and the output too."""
        inner = FLOAT32 if FORMATS[dtype].unit > FLOAT32.unit else FORMATS[dtype]
        return cls(FORMATS[dtype], inner, inner, FORMATS[dtype])

    @classmethod
    def fused_fast_exp(cls, dtype: str) -> Precision:
        """A fused kernel with an exponential of its own that is just good enough for weights in half precision."""
        return replace(cls.fused(dtype), fast_exp=FAST_EXP)

    @classmethod
    def eager(cls, dtype: str) -> Precision:
        """Op by op: each operation accumulates in float32 and stores its result in the storage format."""
        inner = FLOAT32 if FORMATS[dtype].unit > FLOAT32.unit else FORMATS[dtype]
        return cls(FORMATS[dtype], inner, FORMATS[dtype], FORMATS[dtype])

    @classmethod
    def tf32(cls, dtype: str = "float32") -> Precision:
        """float32 whose matrix operands, inputs included, are rounded to tf32."""
        return replace(cls.plain(dtype), operand=TF32)

    def either_side(self, scale: float) -> Precision:
        """For gradients, whose scale may be applied before or after a product: over- and underflow of either way count."""
        factor = abs(scale) or 1.0

        def wider(f: Format) -> Format:
            return replace(f, tiny=f.tiny * (1.0 + factor), huge=f.huge * min(1.0, factor))

        parts = self.parts and wider(self.parts)
        sides = replace(self, operand=wider(self.operand), elementwise=wider(self.elementwise), parts=parts)
        return replace(sides, scaled_tiny=self.with_scaled_inputs(scale).scaled_tiny)

    def with_scaled_inputs(self, scale: float) -> Precision:
        """Op by op, queries or keys may be multiplied by the scale, or both by its root, and stored: subnormal numbers lose most
        of their digits there, which counts where they meet large numbers."""
        if not self.op_by_op:
            return self
        return replace(self, scaled_tiny=self.elementwise.tiny * max(1.0, 1.0 / (abs(scale) or 1.0)))

    @classmethod
    def named(cls, name: str, dtype: str) -> Precision:
        """The model called "plain", "fused", "fused-fast-exp", "eager" or "tf32", for one dtype."""
        models: dict[str, Callable[[str], Precision]] = {
            "plain": cls.plain, "fused": cls.fused, "fused-fast-exp": cls.fused_fast_exp, "eager": cls.eager, "tf32": cls.tf32,
        }  # fmt: skip
        return models[name](dtype)


LN_2 = 0.6931471805599453


# Cubic polynomials between powers of two: torch's on a CPU (pytorch/pytorch#151441) is wrong by up to 1.08e-4, its argument's
# rounding included.
FAST_EXP = 2.0**-13


EXACT = Precision.plain("float64")


def gamma(n: int, unit: float) -> float:
    """n u / (1 - n u), Higham's bound on the relative error of n rounded operations; infinite where it says nothing."""
    return n * unit / (1 - n * unit) if n * unit < 1 else float("inf")
