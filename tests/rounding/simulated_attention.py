"""Attention, its gradients and positional encodings as a `Machine` computes them; see `simulated_arithmetic`.

Where the scale goes, when the sum of the weights divides, whether tiles of keys share a running maximum: each
is a habit of the machine. Nothing here is taken from the reference.

Letters: B batch, H query heads, G key/value heads, Q queries, K keys, D key size, E value size.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

from qkverify.problem.attention_problem import Problem

from .simulated_arithmetic import LOG2_E, Array, Machine

TILE = 16


class Attention:
    """One problem on one machine. `forward()` -> (output, lse); `gradients(delta)` -> by name."""

    def __init__(self, problem: Problem, machine: Machine) -> None:
        self.problem, self.machine, self.sizes = problem, machine, problem.sizes
        self.query, self.key, self.value = (
            np.asarray(x, np.float64) for x in (problem.query, problem.key, problem.value)
        )
        given = problem.scale
        self.exact_scale = float(max(self.sizes["D"], 1) ** -0.5 if given is None else given)
        self.scale = machine.partial(self.exact_scale)
        self.capped = problem.softcap is not None and bool(np.isfinite(problem.softcap))
        habit = machine.habits.exponent
        # log2 e goes into the last constant that the scores are multiplied by, if nothing is added to them.
        self.folded = habit == "scale" and problem.bias is None and problem.alibi_slopes is None
        # Then exp is taken of what `scores` returns, in base 2; else log2 e is left to exp.
        self.in_base2 = self.folded or habit == "scores"
        self.exp = machine.exp2 if self.in_base2 else machine.exp
        self.logits, self.tangent = self.scores()
        self.rows = problem.some_visible[..., None] | (problem.sinks is not None)  # (B,H,Q,1): not empty

    def per_head(self, shared: Array) -> Array:
        """(B,G,K,.) -> (B,H,K,.)."""
        return np.repeat(shared, self.problem.group, axis=1)

    # -- scores --------------------------------------------------------------------------------------------

    def scores(self) -> tuple[Array, Array]:
        """(B,H,Q,K), -inf where invisible; and the tanh of capped scores."""
        m, p = self.machine, self.problem
        scores, tangent = self.products(), None
        if self.capped:
            tangent = m.tanh(scores)
            scores = m.result(tangent * m.partial(p.softcap * (LOG2_E if self.folded else 1.0)))
        if p.bias is not None:
            scores = m.result(scores + np.asarray(p.bias, np.float64))
        if p.alibi_slopes is not None:
            start = self.sizes["K"] - self.sizes["Q"] if p.causal_alignment == "bottom-right" else 0
            distance = np.abs(np.arange(self.sizes["K"]) - np.arange(self.sizes["Q"])[:, None] - start)
            slopes = np.asarray(p.alibi_slopes, np.float64)[:, None, None]
            scores = m.result(scores - (slopes * distance if m.habits.fused else m.result(slopes * distance)))
        if self.in_base2 and not self.folded:
            scores = self.to_base2(scores)
        return np.where(p.visible, scores, -np.inf), tangent

    def products(self) -> Array:
        """query key^T times the scale, and divided by the cap: (B,H,Q,K)."""
        m, query, key = self.machine, self.query, self.per_head(self.key)
        where, cap = m.habits.scale, self.problem.softcap
        exact = self.exact_scale * (LOG2_E if self.folded and not self.capped else 1.0)
        if where in ("query", "both"):
            root = m.partial(math.sqrt(abs(exact)) * np.sign(exact) if where == "both" else exact)
            query = m.result(query * root)
        if where in ("key", "both"):
            key = m.result(key * m.partial(math.sqrt(abs(exact)) if where == "both" else exact))
        products = m.product(query, key.swapaxes(-1, -2))
        if where == "scores" and self.capped and self.folded:
            return m.result(products * m.partial(exact / cap))
        scaled = m.result(products * m.partial(exact)) if where == "scores" else products
        return m.result(scaled / m.partial(cap)) if self.capped else scaled

    def to_base2(self, x: Array) -> Array:
        return self.machine.result(x * self.machine.partial(LOG2_E))

    def sink(self) -> Array:
        """(H,1,1), in the base of the scores."""
        sink = np.asarray(self.problem.sinks, np.float64)[:, None, None]
        return self.to_base2(sink) if self.in_base2 else sink

    # -- forward -------------------------------------------------------------------------------------------

    def forward(self) -> tuple[Array, Array]:
        """output (B,H,Q,E), log-sum-exp (B,H,Q)."""
        m, keys = self.machine, self.sizes["K"]
        value = self.per_head(self.value)
        if m.habits.softmax == "splits" and keys > TILE:
            cut = TILE * int(m.rng.integers(1, (keys - 1) // TILE + 1))
            parts = [self.part(value, slice(0, cut), sink=True), self.part(value, slice(cut, keys))]
            output, lse = self.merged(*parts)
        else:
            output, lse = self.part(value, slice(0, keys), sink=True)
        if self.problem.empty_rows == "nan":
            output = np.where(self.rows, output, np.nan)
        elif self.problem.empty_rows == "uniform":
            evenly = np.broadcast_to(m.result(1.0 / max(keys, 1)), self.logits.shape)
            output = np.where(self.rows, output, m.product(evenly, value))
        return m.stored(output), np.where(self.rows, lse, -np.inf)[..., 0]

    def part(self, value: Array, keys: slice, *, sink: bool = False) -> tuple[Array, Array]:
        """output (B,H,Q,E) and log-sum-exp (B,H,Q,1) of some of the keys, with the sink or without."""
        m, style = self.machine, self.machine.habits.softmax
        if style == "online":
            peak, total, sums = self.online(value)
        else:
            peak, total, weights = self.whole(keys, sink=sink)
        divisor = np.where(total > 0, total, 1.0)
        if style in ("textbook", "splits"):
            output = m.product(m.result(weights / divisor), value[..., keys, :])
        else:
            sums = sums if style == "online" else m.product(weights, value)
            output = m.result(sums * m.result(1.0 / divisor) if style == "reciprocal" else sums / divisor)
        if self.in_base2:
            peak = m.result(peak * m.partial(math.log(2)))
        return output, np.where(total > 0, m.result(m.log(divisor) + peak), -np.inf)

    def whole(self, keys: slice, *, sink: bool) -> tuple[Array, Array, Array]:
        """Over some keys at once: maximum, sum of the weights, weights."""
        m, logits = self.machine, self.logits[..., keys]
        if sink and self.problem.sinks is not None:
            logits = np.concatenate([logits, np.broadcast_to(self.sink(), (*logits.shape[:3], 1))], axis=-1)
        peak = finite(np.max(logits, axis=-1, keepdims=True, initial=-np.inf))
        weights = self.exp(m.result(logits - peak))
        return peak, m.sum(m.summand(weights)), weights[..., : keys.stop - keys.start]

    def online(self, value: Array) -> tuple[Array, Array, Array]:
        """Over tiles of keys, in any order: maximum, sum of the weights, sum of the weighted values."""
        m = self.machine
        peak, total = (np.full((*self.logits.shape[:3], 1), x) for x in (-np.inf, 0.0))
        sums = np.zeros((*self.logits.shape[:3], self.sizes["E"]))
        if self.problem.sinks is not None:
            peak, total = np.broadcast_to(self.sink(), peak.shape), np.ones_like(total)
        for start in m.rng.permutation(np.arange(0, self.sizes["K"], TILE)):
            tile = self.logits[..., start : start + TILE]
            new = np.maximum(peak, np.max(tile, axis=-1, keepdims=True))
            weights = self.exp(m.result(tile - finite(new)))
            decay = np.where(peak == new, 1.0, self.exp(m.result(peak - finite(new))))
            scaled = sums * decay if m.habits.fused else m.result(sums * decay)
            sums = m.result(scaled + m.product(weights, value[..., start : start + TILE, :]))
            total = m.result(m.result(total * decay) + m.sum(m.summand(weights)))
            peak = new
        return finite(peak), total, sums

    def merged(self, left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
        """The output and log-sum-exp of two parts together."""
        m = self.machine
        peak = finite(np.maximum(left[1], right[1]))
        first, second = (m.exp(m.result(lse - peak)) for _, lse in (left, right))
        total = m.result(first + second)
        divisor = np.where(total > 0, total, 1.0)
        shares = (m.result(first / divisor), m.result(second / divisor))
        results = (m.of_split(left[0]), m.of_split(right[0]))
        output = m.result(m.result(shares[0] * results[0]) + m.result(shares[1] * results[1]))
        return output, m.result(m.log(divisor) + peak)

    # -- backward ------------------------------------------------------------------------------------------

    def gradients(self, delta: str) -> dict[str, Array]:
        """By query, key, value, and bias and sinks where given."""
        m, p = self.machine, self.problem
        upstream = np.asarray(p.upstream, np.float64)
        output, lse = self.forward()
        shift = finite(lse[..., None])
        shift = self.to_base2(shift) if self.in_base2 else shift
        weights = self.weights(shift)
        d_weights = m.product(upstream, self.per_head(self.value).swapaxes(-1, -2))
        used = np.where(self.rows, output, 0.0)
        row = m.dot(upstream, used) if delta == "output" else m.dot(weights, d_weights)
        d_logits = m.result(weights * m.result(d_weights - row))
        late = m.habits.scaled_late
        d_products = d_logits if late else m.result(d_logits * self.scale)
        if self.capped:
            d_products = m.result(d_products * m.result(1.0 - m.result(self.tangent * self.tangent)))
        if p.empty_rows == "uniform":
            weights = np.where(self.rows, weights, m.result(1.0 / max(self.sizes["K"], 1)))
        scaled = (lambda x: m.result(x * self.scale)) if late else (lambda x: x)
        d_query = scaled(m.product(d_products, self.per_head(self.key)))
        d_key = self.by_key(d_products, self.query, scaled)
        gradients = {"query": d_query, "key": d_key, "value": self.by_key(weights, upstream)}
        if p.bias is not None:
            gradients["bias"] = self.summed_to(m.stored(d_logits), p.bias.shape)
        if p.sinks is not None:
            terms = m.result(self.exp(m.result(self.sink() - shift)) * row)[..., 0]  # (B,H,Q)
            gradients["sinks"] = -m.result(m.total(np.moveaxis(terms, 1, -1).reshape(-1, self.sizes["H"])))
        return {name: m.stored(x) for name, x in gradients.items()}

    def weights(self, shift: Array) -> Array:
        """The probabilities again, (B,H,Q,K)."""
        m = self.machine
        if m.habits.weights == "forward" and m.habits.softmax not in ("online", "splits"):
            _, total, weights = self.whole(slice(0, self.sizes["K"]), sink=True)
            return m.result(weights / np.where(total > 0, total, 1.0))
        return self.exp(m.result(self.logits - shift))

    def by_key(self, rows: Array, columns: Array, finished: Callable[[Array], Array] = lambda x: x) -> Array:
        """rows^T columns over the queries of all heads of a group: (B,H,Q,K), (B,H,Q,.) -> (B,G,K,.)."""
        m, groups = self.machine, self.sizes["G"]
        if m.habits.heads != "together":
            each = m.part(finished(m.product(rows.swapaxes(-1, -2), columns)))
            parts = np.moveaxis(each.reshape(each.shape[0], groups, -1, *each.shape[2:]), 2, 0)
            return (
                functools.reduce(lambda a, b: m.part(a + b), parts)
                if m.habits.heads == "chain"
                else m.result(m.total(parts))
            )
        rows, columns = (x.reshape(x.shape[0], groups, -1, x.shape[-1]) for x in (rows, columns))
        return finished(m.product(rows.swapaxes(-1, -2), columns))

    def summed_to(self, x: Array, shape: tuple[int, ...]) -> Array:
        """The sum over the axes along which an array of this shape was broadcast."""
        aligned = (1,) * (x.ndim - len(shape)) + shape
        axes = [axis for axis, size in enumerate(aligned) if size == 1]
        kept = [axis for axis, size in enumerate(aligned) if size != 1]
        terms = x.transpose(*axes, *kept).reshape(-1, *(x.shape[axis] for axis in kept))
        return self.machine.result(self.machine.total(terms)).reshape(shape)


def finite(peak: Array) -> Array:
    return np.where(np.isfinite(peak), peak, 0.0)


def multi_head(machine: Machine, x: Array, weights: tuple[Array, Array, Array, Array], heads: int) -> Array:
    """x (B,L,M), the weights (M,H*D), (M,H*D), (M,H*E) and (H*E,M) -> (B,L,M)."""
    batch, length, _ = x.shape

    def projected(weight: Array) -> Array:
        product = machine.stored(machine.product(x, weight[None]))
        return product.reshape(batch, length, heads, -1).transpose(0, 2, 1, 3)

    query, key, value = (projected(weight) for weight in weights[:3])
    output, _ = Attention(Problem(query=query, key=key, value=value), machine).forward()
    merged = output.transpose(0, 2, 1, 3).reshape(batch, length, -1)
    return machine.stored(machine.product(merged, weights[3][None]))


# -- positions ---------------------------------------------------------------------------------------------


def angles(machine: Machine, positions: Array, dim: int, base: float, way: str) -> Array:
    """position / base^(2i/dim), (L, dim/2). The frequencies are constants, the angle is a result.

    `way` says how: "divide" by a power, times its "inverse", or times the exponential of a "logarithm".
    """
    m, twice = machine, np.arange(0, dim, 2)
    off = 1 + m.off(twice.shape, m.precision.exp_ulps)
    if way == "logarithm":
        step = m.partial(m.partial(-math.log(base)) / dim)
        return m.result(positions[:, None] * m.partial(np.exp(m.partial(twice * step)) * off))
    power = m.partial(base ** m.partial(twice / dim) * off)
    inverse = way == "inverse"
    return m.result(positions[:, None] * m.partial(1.0 / power) if inverse else positions[:, None] / power)


def joined(first: Array, second: Array, layout: str) -> Array:
    if layout == "interleaved":
        return np.stack([first, second], axis=-1).reshape(*first.shape[:-1], -1)
    return np.concatenate([first, second], axis=-1)


def positional_encoding(machine: Machine, positions: Array, dim: int, layout: str, way: str) -> Array:
    """Base 10000: (L, dim)."""
    angle = angles(machine, positions, dim, 10000.0, way)
    return machine.stored(joined(machine.sin(angle), machine.cos(angle), layout))


def rotary(machine: Machine, x: Array, positions: Array, layout: str, way: str) -> Array:
    """x (..., L, D), base 10000."""
    m, half = machine, x.shape[-1] // 2
    angle = angles(m, positions, x.shape[-1], 10000.0, way)
    sine, cosine = m.sin(angle), m.cos(angle)
    a, b = (x[..., 0::2], x[..., 1::2]) if layout == "interleaved" else (x[..., :half], x[..., half:])

    def turned(u: Array, v: Array) -> Array:
        """u cos + v sin; fused, one of the products is not rounded."""
        return m.result((u * cosine if m.habits.fused else m.result(u * cosine)) + m.result(v * sine))

    return m.stored(joined(turned(a, -b), turned(b, a), layout))
