"""Arithmetic of a declared precision: every step rounded, in an order drawn at random.

What `qkverify.rounding` promises holds for every faithful implementation. A `Machine` is one of them, drawn:
which way it rounds where the format leaves a choice, how wrong its exp is, in which order it sums. It shares
no code with `rounding`, of which it reads the formats alone.

Numbers are held in float64 and rounded to the narrower format after each operation. For sums, products,
quotients and roots of float32 numbers, and narrower ones, that is the correctly rounded result (Figueroa,
"When is double rounding innocuous?", SIGNUM Newsletter 30(3), 1995). float64 is rounded by the hardware.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from qkverify.rounding import FLOAT64, TF32, Format, Precision

Array = Any
SMALLEST_EXPONENT = {"float16": -14, "float64": -1022}  # of a normal number; all others: -126
OWN_UNITS = 4.0  # unit roundoffs that NumPy's float64 functions may be off: two units in the last place
SMALLEST_FLOAT32 = 2.0**-126  # normal number; bfloat16 and tf32 have the same
LOG2_E = math.log2(math.e)


def to_format(x: Array, format: Format, rounding: str, rng: np.random.Generator) -> Array:
    """float64 numbers rounded to the nearest of `format`: "even" breaks ties as IEEE 754 does.

    The analysis assumes a relative error of at most the unit roundoff. Wherever the neighbour on the other
    side is within that as well (at a tie, and near the top of a binade), "up" takes the larger in magnitude
    of the two, "down" the smaller and "either" one at random.
    """
    if format.unit == FLOAT64.unit:
        return x
    lowest = SMALLEST_EXPONENT.get(format.name, -126) + 1  # the mantissa of frexp lies in [1/2, 1)
    spacing = np.ldexp(format.unit, np.maximum(np.frexp(x)[1], lowest))
    magnitude = np.abs(x)
    with np.errstate(invalid="ignore"):
        rounded = np.rint(magnitude / spacing) * spacing
        if rounding != "even":
            lower, upper = np.floor(magnitude / spacing) * spacing, np.ceil(magnitude / spacing) * spacing
            up = {"up": True, "down": False}.get(rounding)
            wanted = np.where(rng.random(np.shape(x)) < 0.5 if up is None else up, upper, lower)
            allowed = np.abs(wanted - magnitude) <= format.unit * magnitude
            rounded = np.where(allowed, wanted, rounded)
    return np.copysign(np.where(rounded > format.huge, np.inf, rounded), x)


@dataclass(frozen=True)
class Habits:
    """What the declared precision leaves open, and one implementation has decided."""

    rounding: str = "even"  # "up", "down", "either": see `to_format`
    functions: str = "correct"  # exp and the like; "high", "low", "random": off by all that is declared
    order: str = "sequential"  # of a sum: "reversed", "permuted", "pairwise", "blocked"
    fused: bool = False  # products are added before they are rounded
    flush: bool = False  # results below the smallest normal number become zero, where the format allows it
    exponent: str = "exp"  # "exp2": of the argument times log2 e, folded into the "scale" or the "scores"
    scale: str = "scores"  # what the scale is multiplied into: "query", "key", "both"
    softmax: str = "textbook"  # "late", "reciprocal" division; "online" over tiles of keys; "splits" merged
    weights: str = "lse"  # of the backward pass: exp(score - lse), or "forward": those of the forward pass
    scaled_late: bool = False  # gradients are scaled after the matrix product
    heads: str = "together"  # that share a key: their gradients in one sum; "parts" stored before; "chain" of stored sums

    @classmethod
    def drawn(cls, rng: np.random.Generator, precision: Precision) -> Habits:
        """Any of them that the precision speaks of.

        A fused kernel takes queries and keys as they are stored, since it would have to round them again
        once they are scaled. Op by op there are no tiles.
        """
        eager = precision.elementwise.unit > precision.accumulate.unit
        rereads = precision.operand.unit > precision.elementwise.unit and precision.operand != TF32
        softmax: tuple[str, ...] = (
            "textbook",
            "late",
            "reciprocal",
            *(() if eager else ("online", "splits")),
        )
        if precision.row_sum:
            softmax = ("late", "reciprocal", "online")
        if precision.splits:
            softmax = ("splits",)
        choices: dict[str, tuple[Any, ...]] = {
            "rounding": ("even", "up", "down", "either"),
            "functions": ("correct", "high", "low", "random"),
            "order": ("sequential", "reversed", "permuted", "pairwise", "blocked"),
            "fused": (False, True),
            "flush": (False, True),
            "exponent": ("exp", "exp2") if eager else ("exp", "exp2", "scale", "scores"),
            "scale": ("scores",) if rereads else ("scores", "query", "key", "both"),
            "softmax": softmax,
            "weights": ("lse", "forward"),
            "scaled_late": (False, True),
            "heads": (
                "together",
                *(("parts",) if eager or precision.parts else ()),
                *(("chain",) if eager else ()),
            ),
        }
        return cls(**{name: values[rng.integers(len(values))] for name, values in choices.items()})

    @property
    def careful(self) -> bool:
        """IEEE 754 rounding and accurate functions: what most machines do."""
        return self.rounding == "even" and self.functions == "correct"


class Machine:
    """Arithmetic of one precision with fixed habits."""

    def __init__(self, precision: Precision, habits: Habits, rng: np.random.Generator) -> None:
        self.precision = precision
        self.habits = habits
        self.rng = rng

    # -- roundings -----------------------------------------------------------------------------------------

    def rounded(self, x: Array, format: Format) -> Array:
        x = to_format(np.asarray(x, dtype=np.float64), format, self.habits.rounding, self.rng)
        if self.habits.flush and format.name not in SMALLEST_EXPONENT:
            x = np.where(np.abs(x) < SMALLEST_FLOAT32, 0.0, x)
        return x

    def partial(self, x: Array) -> Array:
        """What an accumulator holds, and a constant of the program."""
        return self.rounded(x, self.precision.accumulate)

    def result(self, x: Array) -> Array:
        """What an elementwise operation leaves."""
        return self.rounded(x, self.precision.elementwise)

    def operand(self, x: Array) -> Array:
        """What enters a matrix product: an input that is below the smallest normal number is read as it is."""
        return to_format(np.asarray(x, np.float64), self.precision.operand, self.habits.rounding, self.rng)

    def stored(self, x: Array) -> Array:
        return self.rounded(x, self.precision.output)

    def summand(self, x: Array) -> Array:
        """A weight, as it enters the sum of its row."""
        return self.rounded(x, self.precision.row_sum) if self.precision.row_sum else x

    def of_split(self, x: Array) -> Array:
        """The result of some of the keys."""
        return self.rounded(x, self.precision.splits) if self.precision.splits else x

    def part(self, x: Array) -> Array:
        """What is stored to be added to others."""
        return self.rounded(x, self.precision.parts or self.precision.elementwise)

    # -- functions -----------------------------------------------------------------------------------------

    def off(self, shape: tuple[int, ...], units: float) -> Array:
        """Errors of a function, up to `units` unit roundoffs of the accumulators in size."""
        if self.precision.accumulate.unit == FLOAT64.unit:
            units -= OWN_UNITS
        size = {"correct": 0.0, "high": 1.0, "low": -1.0}.get(self.habits.functions)
        signs = self.rng.uniform(-1, 1, shape) if size is None else size
        return signs * max(units, 0.0) * self.precision.accumulate.unit

    def exp(self, x: Array) -> Array:
        if self.habits.exponent != "exp":
            return self.exp2(self.partial(x * self.partial(LOG2_E)))
        return self.result(np.exp(x) * (1 + self.off(np.shape(x), self.precision.exp_ulps)))

    def exp2(self, x: Array) -> Array:
        return self.result(np.exp2(x) * (1 + self.off(np.shape(x), self.precision.exp_ulps)))

    def power(self, base: Array, exponent: Array) -> Array:
        return self.result(base**exponent * (1 + self.off(np.shape(exponent), self.precision.exp_ulps)))

    def tanh(self, x: Array) -> Array:
        return self.result(np.tanh(x) + self.off(np.shape(x), self.precision.exp_ulps))

    def log(self, x: Array) -> Array:
        return self.result(np.log(x) + self.off(np.shape(x), self.precision.exp_ulps))

    def sin(self, x: Array) -> Array:
        return self.result(np.sin(x) + self.off(np.shape(x), self.precision.trig_ulps))

    def cos(self, x: Array) -> Array:
        return self.result(np.cos(x) + self.off(np.shape(x), self.precision.trig_ulps))

    # -- sums ----------------------------------------------------------------------------------------------

    def total(self, terms: Array) -> Array:
        """The sum over the first axis, each partial sum rounded: (n, ...) -> (...)."""
        n, order = len(terms), self.habits.order
        if n == 0:
            return np.zeros(terms.shape[1:])
        if order == "pairwise":
            while len(terms) > 1:
                odd = terms[len(terms) // 2 * 2 :]
                terms = np.concatenate([self.partial(terms[:-1:2] + terms[1::2]), odd])
            return self.partial(terms[0])
        if order in ("reversed", "permuted"):
            terms = terms[::-1] if order == "reversed" else terms[self.rng.permutation(n)]
        if order == "blocked" and n > 3:
            width = int(self.rng.integers(2, n))
            padded = np.concatenate([terms, np.zeros((-n % width, *terms.shape[1:]))])
            terms = self.chain(padded.reshape(width, -1, *terms.shape[1:]))
        return self.chain(terms)

    def chain(self, terms: Array) -> Array:
        sum = self.partial(terms[0])
        for term in terms[1:]:
            sum = self.partial(sum + term)
        return sum

    def sum(self, x: Array) -> Array:
        """(..., n) -> (..., 1)."""
        return self.result(self.total(np.moveaxis(x, -1, 0)))[..., None]

    def dot(self, a: Array, b: Array) -> Array:
        """Rows of a times rows of b: (..., n) -> (..., 1)."""
        return self.sum(a * b if self.habits.fused else self.result(a * b))

    def product(self, a: Array, b: Array) -> Array:
        """The matrix product of two operands: (..., M, n) @ (..., n, N)."""
        a, b = np.moveaxis(self.operand(a), -1, 0), np.moveaxis(self.operand(b), -2, 0)
        terms = a[..., None] * b[..., None, :]  # (n, ..., M, N)
        return self.result(self.total(terms if self.habits.fused else self.partial(terms)))


def cubic_exponential(x: np.ndarray) -> np.ndarray:
    """The exponential of torch's fused attention on a CPU, in float32 as there (pytorch/pytorch#151441)."""
    octaves = x.astype(np.float32) * np.float32(np.log2(np.e))
    part = octaves - np.floor(octaves)
    cubic = np.float32(-0.079204240219773236)
    for coefficient in (-0.22433836478672356, 0.30354260500649682, 0.00010703434948458272):
        cubic = cubic * part + np.float32(coefficient)
    bits = (octaves - cubic) * np.float32(2**23) + np.float32(127 * 2**23)
    return bits.astype(np.int32).view(np.float32).astype(np.float64)
