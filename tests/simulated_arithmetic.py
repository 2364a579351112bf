"""Attention as a machine with a declared precision computes it: rounded after every step, in an order drawn at random.

What `qkverify.rounding` promises holds for every faithful implementation. A `Machine` is one of them, drawn: which way it
rounds where the format leaves a choice, how wrong its exp is, in which order it sums, where it puts the scale, when it
divides by the sum of the weights, whether it runs over tiles of keys with a running maximum. It shares no code with the
reference, nor with `rounding`, of which it reads the formats alone.

Numbers are held in float64 and rounded to the narrower format after each operation. For a sum, product, quotient or
square root of float32 numbers (and narrower ones) that is the correctly rounded result: Figueroa, "When is double
rounding innocuous?", 1995. float64 itself is rounded by the hardware.

Letters: B batch, H query heads, G key/value heads, Q queries, K keys, D key size, E value size, T keys of a tile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from qkverify.problems import Problem
from qkverify.rounding import FLOAT64, Format, Precision

Array = Any
TILE = 16
SMALLEST_EXPONENT = {"float16": -14, "float8_e4m3": -6, "float8_e5m2": -14}  # of a normal number; all others: -126
CORRECT = 4.0  # units by which NumPy's own float64 functions may be off: within two units in the last place


def to_format(x: Array, format: Format, rounding: str, rng: np.random.Generator) -> Array:
    """float64 numbers rounded to `format`, to nearest: "even" breaks ties as IEEE 754 does.

    The analysis assumes a relative error of at most the unit roundoff, so wherever the neighbour on the other side is
    within that as well (at a tie, and near the top of a binade), "either" takes one of both at random, "up" the larger in
    magnitude and "down" the smaller.
    """
    if format.unit == FLOAT64.unit:
        return x
    digits = round(-math.log2(format.unit))
    _, exponent = np.frexp(x)
    lowest = SMALLEST_EXPONENT.get(format.name, -126) + 1  # frexp's mantissa lies in [1/2, 1)
    spacing = np.ldexp(1.0, np.maximum(exponent, lowest) - digits)
    with np.errstate(invalid="ignore"):
        nearest = np.rint(x / spacing) * spacing
        if rounding != "even":
            lower, upper = np.floor(np.abs(x) / spacing) * spacing, np.ceil(np.abs(x) / spacing) * spacing
            wanted = {"up": upper, "down": lower}.get(rounding)
            if wanted is None:
                wanted = np.where(rng.random(np.shape(x)) < 0.5, lower, upper)
            allowed = np.abs(wanted - np.abs(x)) <= format.unit * np.abs(x)
            nearest = np.where(allowed, np.copysign(wanted, x), nearest)
    return np.where(np.abs(nearest) > format.huge, np.copysign(np.inf, nearest), nearest)


@dataclass(frozen=True)
class Habits:
    """What the declared precision leaves open, and one implementation has decided."""

    rounding: str = "even"  # "either", "up", "down": see `to_format`
    functions: str = "correct"  # exp, log, tanh, sin, cos: or off by as much as is declared: "random", "high", "low"
    order: str = "sequential"  # of a sum: "reversed", "permuted", "pairwise", "blocked"
    fused: bool = False  # products are added before they are rounded
    base2: bool = False  # exp(a) as exp2(a log2 e)
    scale: str = "scores"  # what the scale is multiplied into: "query", "key", "both", "log2 e"
    softmax: str = "textbook"  # "late": values first, then the division; "reciprocal"; "online": over tiles of keys
    weights: str = "lse"  # of the backward pass: exp(score - lse), or those of the forward: "forward"
    scaled_late: bool = False  # gradients are scaled after the matrix product
    flush: bool = False  # results below the smallest normal number become zero

    @classmethod
    def drawn(cls, rng: np.random.Generator, precision: Precision) -> Habits:
        """Any of them that the precision speaks of.

        Op by op there are no tiles. Where operands are rounded further than float32, a scale that was multiplied into one
        would be rounded with it, so it stays with the scores.
        """
        wide = precision.operand.unit <= precision.accumulate.unit or precision.operand.name == "tf32"
        eager = precision.elementwise.unit > precision.accumulate.unit
        return cls(
            rounding=str(rng.choice(["even", "either", "up", "down"])),
            functions=str(rng.choice(["correct", "random", "high", "low"])),
            order=str(rng.choice(["sequential", "reversed", "permuted", "pairwise", "blocked"])),
            fused=bool(rng.random() < 0.5),
            base2=bool(rng.random() < 0.5),
            scale=str(rng.choice(["scores", "query", "key", "both", "log2 e"] if wide else ["scores", "log2 e"])) if not eager else "scores",
            softmax=str(rng.choice(["textbook", "late", "reciprocal"] if eager else ["textbook", "late", "reciprocal", "online"])),
            weights=str(rng.choice(["lse", "forward"])),
            scaled_late=bool(rng.random() < 0.5),
        )  # fmt: skip


class Machine:
    """Arithmetic of one precision with fixed habits."""

    def __init__(self, precision: Precision, habits: Habits, rng: np.random.Generator) -> None:
        self.precision = precision
        self.habits = habits
        self.rng = rng

    def rounded(self, x: Array, format: Format) -> Array:
        x = to_format(np.asarray(x, dtype=np.float64), format, self.habits.rounding, self.rng)
        if self.habits.flush:
            smallest = 2.0 ** SMALLEST_EXPONENT.get(format.name, -126)
            x = np.where(np.abs(x) < smallest, 0.0, x)
        return x

    def partial(self, x: Array) -> Array:
        """What an accumulator holds, and a constant of the program."""
        return self.rounded(x, self.precision.accumulate)

    def result(self, x: Array) -> Array:
        """What an elementwise operation leaves."""
        return self.rounded(x, self.precision.elementwise)

    def operand(self, x: Array) -> Array:
        return self.rounded(x, self.precision.operand)

    def stored(self, x: Array) -> Array:
        return self.rounded(x, self.precision.output)

    def off(self, shape: tuple[int, ...], units: float) -> Array:
        """Errors of a function, up to `units` unit roundoffs of the accumulators in size."""
        if self.precision.accumulate.unit == FLOAT64.unit:
            units -= CORRECT
        sizes = {"correct": 0.0, "high": 1.0, "low": -1.0}.get(self.habits.functions)
        return (self.rng.uniform(-1, 1, shape) if sizes is None else sizes) * units * self.precision.accumulate.unit

    def exp(self, x: Array) -> Array:
        if self.habits.base2:
            power = np.exp2(self.partial(x * self.partial(math.log2(math.e))))
        else:
            power = np.exp(x)
        return self.result(power * (1 + self.off(np.shape(x), self.precision.exp_ulps)))

    def exp2(self, x: Array) -> Array:
        return self.result(np.exp2(x) * (1 + self.off(np.shape(x), self.precision.exp_ulps)))

    def tanh(self, x: Array) -> Array:
        return self.result(np.tanh(x) + self.off(np.shape(x), self.precision.exp_ulps))

    def log(self, x: Array) -> Array:
        return self.result(np.log(x) + self.off(np.shape(x), self.precision.exp_ulps))

    def sin(self, x: Array) -> Array:
        return self.result(np.sin(x) + self.off(np.shape(x), self.precision.trig_ulps))

    def cos(self, x: Array) -> Array:
        return self.result(np.cos(x) + self.off(np.shape(x), self.precision.trig_ulps))

    def total(self, terms: Array) -> Array:
        """The sum over the first axis, each partial sum rounded: (n, ...) -> (...)."""
        n, order = len(terms), self.habits.order
        if n == 0:
            return np.zeros(terms.shape[1:])
        if order == "pairwise":
            while len(terms) > 1:
                odd = terms[len(terms) // 2 * 2 :]
                terms = np.concatenate([self.partial(terms[0:-1:2] + terms[1::2]), odd])
            return self.partial(terms[0])
        if order in ("reversed", "permuted"):
            terms = terms[::-1] if order == "reversed" else terms[self.rng.permutation(n)]
        if order == "blocked" and n > 3:
            width = int(self.rng.integers(2, n))
            padded = np.concatenate([terms, np.zeros((-n % width, *terms.shape[1:]))])
            terms = self.chain(padded.reshape(width, -1, *terms.shape[1:]))
        return self.partial(self.chain(terms))

    def chain(self, terms: Array) -> Array:
        sum = terms[0] if self.habits.fused else self.partial(terms[0])
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
        """(..., M, n) @ (..., n, N)."""
        terms = np.moveaxis(self.operand(a), -1, 0)[..., None] * np.moveaxis(self.operand(b), -2, 0)[..., None, :]
        return self.result(self.total(terms if self.habits.fused else self.partial(terms)))


class Attention:
    """One problem on one machine. `forward()` -> (output, lse); `gradients(delta)` -> by name."""

    def __init__(self, problem: Problem, machine: Machine) -> None:
        self.problem, self.machine = problem, machine
        self.sizes = problem.sizes
        self.query, self.key, self.value = (np.asarray(x, np.float64) for x in (problem.query, problem.key, problem.value))
        size = self.sizes["D"]
        self.exact_scale = float(problem.scale if problem.scale is not None else size**-0.5)
        self.scale = machine.partial(self.exact_scale)
        self.capped = problem.softcap is not None and np.isfinite(problem.softcap)
        self.bent = any(x is not None for x in (problem.softcap, problem.bias, problem.alibi_slopes, problem.sinks))
        self.logits, self.tangent = self.scores()
        # exp of differences of what `scores` returns, and its unit in natural logarithms
        self.exp = machine.exp2 if self.in_base2 else machine.exp
        self.rows = problem.some_visible[..., None]
        if problem.sinks is not None:
            self.rows = np.ones_like(self.rows)

    @property
    def in_base2(self) -> bool:
        """Scores are kept times log2 e, which was multiplied into the scale."""
        return self.machine.habits.scale == "log2 e" and not self.bent

    def per_head(self, shared: Array) -> Array:
        """(B,G,K,.) -> (B,H,K,.)."""
        return np.repeat(shared, self.problem.group, axis=1)

    def scores(self) -> tuple[Array, Array]:
        """(B,H,Q,K), -inf where invisible; and tanh of the capped scores."""
        m, p = self.machine, self.problem
        query, key, where = self.query, self.per_head(self.key), m.habits.scale
        if where == "query":
            query = m.result(query * self.scale)
        elif where == "key":
            key = m.result(key * self.scale)
        elif where == "both":
            root = m.partial(math.sqrt(abs(self.exact_scale)))
            query, key = m.result(query * np.copysign(root, self.exact_scale)), m.result(key * root)
        scores = m.product(query, key.swapaxes(-1, -2))
        if where in ("scores", "log2 e"):
            scores = m.result(scores * (m.partial(self.exact_scale * math.log2(math.e)) if self.in_base2 else self.scale))
        tangent = None
        if self.capped:
            cap = m.partial(p.softcap)
            tangent = m.tanh(m.result(scores / cap))
            scores = m.result(cap * tangent)
        if p.bias is not None:
            scores = m.result(scores + np.asarray(p.bias, np.float64))
        if p.alibi_slopes is not None:
            start = self.sizes["K"] - self.sizes["Q"] if p.causal_alignment == "bottom-right" else 0
            distance = np.abs(np.arange(self.sizes["K"]) - np.arange(self.sizes["Q"])[:, None] - start)
            slopes = np.asarray(p.alibi_slopes, np.float64)[:, None, None]
            scores = m.result(scores - (slopes * distance if m.habits.fused else m.result(slopes * distance)))
        return np.where(p.visible, scores, -np.inf), tangent

    # -- forward -----------------------------------------------------------------------------------------------------

    def forward(self) -> tuple[Array, Array]:
        """output (B,H,Q,E), log-sum-exp (B,H,Q)."""
        m, p, keys = self.machine, self.problem, self.sizes["K"]
        style = m.habits.softmax
        value = self.per_head(self.value)
        peak, total, weights, sums = self.online(value) if style == "online" else self.whole()
        divisor = np.where(total > 0, total, 1.0)
        if style == "textbook":
            output = m.product(m.result(weights / divisor), value)
        else:
            sums = m.product(weights, value) if sums is None else sums
            output = m.result(sums / divisor) if style != "reciprocal" else m.result(sums * m.result(1.0 / divisor))
        logarithm = m.log(divisor)
        if self.in_base2:
            peak = m.result(peak * m.partial(math.log(2)))
        lse = np.where(self.rows, m.result(logarithm + peak), -np.inf)
        if p.empty_rows == "nan":
            output = np.where(self.rows, output, np.nan)
        elif p.empty_rows == "uniform":
            evenly = np.broadcast_to(m.result(1.0 / max(keys, 1)), self.logits.shape)
            output = np.where(self.rows, output, m.product(evenly, value))
        return m.stored(output), lse[..., 0]

    def sink(self) -> Array:
        """(H,1,1)."""
        return np.asarray(self.problem.sinks, np.float64)[:, None, None]

    def whole(self) -> tuple[Array, Array, Array, None]:
        """Over all keys at once: maximum, sum of the weights, weights."""
        m, logits = self.machine, self.logits
        if self.problem.sinks is not None:
            logits = np.concatenate([logits, np.broadcast_to(self.sink(), (*logits.shape[:3], 1))], axis=-1)
        peak = self.finite(np.max(logits, axis=-1, keepdims=True, initial=-np.inf))
        weights = self.exp(m.result(logits - peak))
        return peak, m.sum(weights), weights[..., : self.sizes["K"]], None

    def online(self, value: Array) -> tuple[Array, Array, None, Array]:
        """Over tiles of keys, in any order: maximum, sum of the weights, sum of the weighted values."""
        m, p, keys = self.machine, self.problem, self.sizes["K"]
        peak, total = np.full((*self.logits.shape[:3], 1), -np.inf), np.zeros((*self.logits.shape[:3], 1))
        sums = np.zeros((*self.logits.shape[:3], self.sizes["E"]))
        if p.sinks is not None:
            peak, total = np.broadcast_to(self.sink(), peak.shape), np.ones_like(total)
        for start in m.rng.permutation(np.arange(0, keys, TILE)):
            tile = self.logits[..., start : start + TILE]
            new = np.maximum(peak, np.max(tile, axis=-1, keepdims=True))
            weights = self.exp(m.result(tile - self.finite(new)))
            decay = np.where(peak == new, 1.0, self.exp(m.result(peak - self.finite(new))))
            scaled = sums * decay if m.habits.fused else m.result(sums * decay)
            sums = m.result(scaled + m.product(weights, value[..., start : start + TILE, :]))
            total = m.result(m.result(total * decay) + m.sum(weights))
            peak = new
        return self.finite(peak), total, None, sums

    @staticmethod
    def finite(peak: Array) -> Array:
        return np.where(np.isfinite(peak), peak, 0.0)

    # -- backward ----------------------------------------------------------------------------------------------------

    def gradients(self, delta: str) -> dict[str, Array]:
        """By query, key, value, and bias and sinks where given."""
        m, p, s = self.machine, self.problem, self.sizes
        upstream = np.asarray(p.upstream, np.float64)
        output, lse = self.forward()
        shift = self.finite(lse[..., None])
        weights = self.weights(shift)
        d_weights = m.product(upstream, self.per_head(self.value).swapaxes(-1, -2))
        row = m.dot(upstream, np.where(self.rows, output, 0.0)) if delta == "output" else m.dot(weights, d_weights)
        d_logits = m.result(weights * m.result(d_weights - row))
        late = m.habits.scaled_late
        d_products = d_logits if late else m.result(d_logits * self.scale)
        if self.capped:
            d_products = m.result(d_products * m.result(1.0 - m.result(self.tangent * self.tangent)))
        factor = self.scale if late else 1.0
        if p.empty_rows == "uniform":
            weights = np.where(self.rows, weights, m.result(1.0 / max(s["K"], 1)))
        found = {
            "query": m.stored(m.result(m.product(d_products, self.per_head(self.key)) * factor)),
            "key": m.stored(m.result(self.by_key(d_products, self.query) * factor)),
            "value": m.stored(self.by_key(weights, upstream)),
        }
        if p.bias is not None:
            found["bias"] = m.stored(self.summed_to(m.stored(d_logits), p.bias.shape))
        if p.sinks is not None:
            terms = m.result(m.exp(m.result(self.sink() - shift)) * row)  # (B,H,Q,1)
            found["sinks"] = m.stored(-m.result(m.total(terms.transpose(0, 2, 3, 1).reshape(-1, s["H"]))))
        return found

    def weights(self, shift: Array) -> Array:
        """The probabilities again, (B,H,Q,K)."""
        m = self.machine
        if m.habits.weights == "forward" and m.habits.softmax != "online":
            _, total, weights, _ = self.whole()
            return m.result(weights / np.where(total > 0, total, 1.0))
        if self.in_base2:
            shift = m.result(shift * m.partial(math.log2(math.e)))
        return self.exp(m.result(self.logits - shift))

    def by_key(self, rows: Array, columns: Array) -> Array:
        """rows^T columns over the queries of all heads that share a key: (B,H,Q,K), (B,H,Q,.) -> (B,G,K,.)."""
        groups = self.sizes["G"]
        rows, columns = (x.reshape(x.shape[0], groups, -1, x.shape[-1]) for x in (rows, columns))
        return self.machine.product(rows.swapaxes(-1, -2), columns)

    def summed_to(self, x: Array, shape: tuple[int, ...]) -> Array:
        aligned = (1,) * (x.ndim - len(shape)) + shape
        axes = [axis for axis, size in enumerate(aligned) if size == 1]
        kept = [axis for axis in range(x.ndim) if axis not in axes]
        terms = x.transpose(*axes, *kept).reshape(-1, *(x.shape[axis] for axis in kept))
        return self.machine.result(self.machine.total(terms)).reshape(shape)
