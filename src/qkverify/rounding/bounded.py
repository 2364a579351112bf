"""Error bounds that are derived: `Precision` says how an implementation rounds, `Bounded` carries the consequence.

A `Bounded` array is a value and, beside it, a bound on how far any faithful computation of that value may be away. It is
a NumPy duck array (NEP 13, NEP 18): the unchanged code of `reference/`, called with `Bounded` arrays, yields the exact
value and the bound by running error analysis (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., ch. 3).
Every rule below holds for any order of summation and for fused or unfused evaluation, so |got - value| > error proves
that no order of the operations of the reference's formula explains the result under the declared precision model.

Rules, for values a, b with errors da, db:

    a + b       da + db                                   a * b       |a| db + |b| da + da db
    a / b       (da + |a / b| db) / (|b| - db)            exp(a)      e^a expm1(da + u |a|) and `exp_ulps`
    sum of n    sum(da) + gamma_n sum(|a| + da)           A @ B       (gamma_n (|A| + dA) + dA) (|B| + dB) + |A| dB
    sum of A @ B over heads: as one long product; where each is stored before, its rounding is added
    maximum     exact (relu): the error of the larger one, or the larger error where it is open which one that is
    heaviside   exact (the slope of relu): 0 or 1, and either where the errors leave the sign open, or at zero
    max         exact as the shift of a softmax; an online softmax rescales once a tile, which is counted here
    positive    "stored to memory": rounded to the output format
    copy        "merged", of weights and values: splits of them may be stored before, and the sum of the weights be rounded

and every elementwise result is rounded once more. Operands of a matrix product that are finer than the operand format are
rounded to it first. Past the largest number of a format the bound is infinite: out of scope, not wrong. The ugly spots:
-inf is taken as an exact masked score, and an error may be the scalar 0.0 instead of an array (it saves half the time).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from qkverify.rounding.formats import Format
from qkverify.rounding.precision import EXACT, LN_2, Array, Precision, gamma


class Bounded(NDArrayOperatorsMixin):
    """A float64 `value`, a bound `error` on the rounding error of each element, and the `Precision` it was derived under.

    `unit` is the unit roundoff of the format that the elements are known to be representable in.
    """

    __slots__ = ("error", "precision", "unit", "value")
    __array_priority__ = 1000

    def __init__(
        self, value: Any, error: Array = 0.0, precision: Precision = EXACT, unit: float | None = None
    ) -> None:
        self.value = np.asarray(value, dtype=np.float64)
        self.error = error
        self.precision = precision
        self.unit = precision.elementwise.unit if unit is None else unit

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def ndim(self) -> int:
        return self.value.ndim

    @property
    def size(self) -> int:
        return self.value.size

    @property
    def errors(self) -> np.ndarray:
        """The error as an array of the value's shape; not to be written."""
        error = self.error
        if error.__class__ is np.ndarray and error.shape == self.value.shape:
            return error
        return np.broadcast_to(error, self.value.shape)

    def __repr__(self) -> str:
        return f"Bounded({self.value!r} +- {self.error!r})"

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        rule = _UFUNCS.get(ufunc)
        if rule is None or method != "__call__" or kwargs:
            return NotImplemented
        return rule(*inputs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        rule = _FUNCTIONS.get(function)
        return NotImplemented if rule is None else rule(*args, **kwargs)

    # The operators go straight to their rules: the detour through the ufunc machinery costs more than the arithmetic.
    def __add__(self, other: Any) -> Any:
        return _add(self, other)

    def __sub__(self, other: Any) -> Any:
        return _subtract(self, other)

    def __mul__(self, other: Any) -> Any:
        return _multiply(self, other)

    def __truediv__(self, other: Any) -> Any:
        return _divide(self, other)

    def __matmul__(self, other: Any) -> Any:
        return _matmul(self, other)

    def __gt__(self, other: Any) -> Any:
        return self.value > _parts(other)[0]

    def __neg__(self) -> Bounded:
        return self._like(-self.value, self.error)

    def __getitem__(self, index: Any) -> Bounded:
        return self._like(self.value[index], self._error_map(lambda e: e[index]))

    def __bool__(self) -> bool:
        raise TypeError("the truth of a Bounded array: compare it with something")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("a Bounded array would lose its bound")

    def __len__(self) -> int:
        return len(self.value)

    def _like(self, value: Any, error: Array) -> Bounded:
        return Bounded(value, error, self.precision, self.unit)

    def _error_map(self, move: Callable[[np.ndarray], Any]) -> Array:
        error = self.error
        return error if error.__class__ is float or np.ndim(error) == 0 else move(self.errors)

    def _moved(self, move: Callable[[np.ndarray], Any]) -> Bounded:
        """A rearrangement of the elements: it makes no error of its own."""
        return self._like(move(self.value), self._error_map(move))

    def sum(self, axis: Any = None, keepdims: bool = False) -> Bounded:
        return _sum(self, axis=axis, keepdims=keepdims)

    def reshape(self, *shape: Any) -> Bounded:
        return self._moved(lambda x: x.reshape(*shape))

    def swapaxes(self, a: int, b: int) -> Bounded:
        return self._moved(lambda x: x.swapaxes(a, b))

    def transpose(self, *axes: Any) -> Bounded:
        return self._moved(lambda x: x.transpose(*axes))


Rule = Callable[..., Any]
LOWEST = float(np.finfo(np.float64).min)


def _parts(x: Any) -> tuple[Any, Array]:
    return (x.value, x.error) if isinstance(x, Bounded) else (x, 0.0)


def _exact(error: Array) -> bool:
    return error.__class__ is float and error == 0.0


def _owner(*xs: Any) -> Bounded:
    for x in xs:  # a generator costs more than the loop
        if isinstance(x, Bounded):
            return x
    raise TypeError("none of these is Bounded")


def _round(value: np.ndarray, error: Array, format: Format) -> Array:
    """The error once the computed value, which lies within `error` of `value`, is rounded to `format`.

    An error of NaN came of an infinite one times zero: nothing can be said. Where the value itself is NaN, it stays.
    """
    rounded = np.abs(value)
    rounded += error
    peak = _peak(rounded)
    rounded *= format.unit
    rounded += format.tiny
    rounded += error
    return (
        rounded
        if peak <= format.huge
        else _unless_unknown(rounded, value, np.abs(value) + error, format.huge)
    )


def _unless_unknown(error: np.ndarray, value: np.ndarray, magnitude: np.ndarray, huge: float) -> np.ndarray:
    """The error, in place infinite where `magnitude` passes `huge`, and where it is NaN beside a value that is not."""
    peak = _peak(magnitude)
    if not peak <= huge:
        error = np.asarray(error)  # NumPy makes a number of an array without axes
        np.copyto(error, np.inf, where=magnitude > huge)
        if np.isnan(peak):
            np.copyto(error, np.inf, where=np.isnan(error) & ~np.isnan(value))
    return error


def _peak(magnitude: np.ndarray) -> float:
    """The largest element, or NaN. One pass over the array: such checks are half the cost of a small bound."""
    return np.maximum.reduce(magnitude, axis=None, initial=0.0)  # type: ignore[no-any-return]


def _elementwise(owner: Bounded, value: np.ndarray, error: Array) -> Bounded:
    p = owner.precision
    return Bounded(value, _round(value, error, p.elementwise), p, p.elementwise.unit)


def _add(x: Any, y: Any) -> Bounded:
    (a, da), (b, db) = _parts(x), _parts(y)
    return _elementwise(_owner(x, y), np.asarray(a + b), da + db)


def _subtract(x: Any, y: Any) -> Bounded:
    """A masked score less what nothing is known of, the log-sum-exp of a row that overflows, may be NaN: it is no -inf that is
    exact, so the lowest number stands for it, whose exp is lost."""
    (a, da), (b, db) = _parts(x), _parts(y)
    value = np.asarray(a - b)
    if db.__class__ is np.ndarray and not _peak(db) < np.inf:
        value = np.where((value == -np.inf) & ~(db < np.inf), LOWEST, value)
    return _elementwise(_owner(x, y), value, da + db)


def _multiply(x: Any, y: Any) -> Bounded:
    (a, da), (b, db) = _parts(x), _parts(y)
    error: Array = 0.0
    with np.errstate(
        invalid="ignore", over="ignore"
    ):  # an infinite error times zero: nothing can be said, and NaN says so
        if not _exact(da):
            error = np.abs(b) * da
        if not _exact(db):
            error = error + (np.abs(a) + da) * db
    return _elementwise(_owner(x, y), np.asarray(a * b), error)


def _divide(x: Any, y: Any) -> Bounded:
    (a, da), (b, db) = _parts(x), _parts(y)
    with np.errstate(invalid="ignore"):  # infinite results of a wrong implementation, divided by one another
        value = np.asarray(a / b)
        room = np.abs(b) - db
    if np.minimum.reduce(room, axis=None, initial=1.0) > 0:
        error = (da + np.abs(value) * db) / room
    else:
        with np.errstate(divide="ignore", invalid="ignore"):
            error = np.where(room > 0, (da + np.abs(value) * db) / room, np.inf)
    return _elementwise(_owner(x, y), value, error)


def _power(x: Any, y: Any) -> Bounded:
    """A bounded base to a plain exponent: exp(y log x) in the working precision, y itself rounded once."""
    if not isinstance(x, Bounded):
        raise TypeError("the exponent of ** must be plain numbers")
    value = np.asarray(x.value**y)
    p = x.precision
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.minimum(np.asarray(x.error) / np.abs(x.value), 1.0)  # from 1 on it may be zero: no bound
        relative = np.where(np.asarray(y) == 0, 0.0, -np.abs(y) * np.log1p(-share))
        relative = relative + (3 * np.abs(y * np.log(np.abs(x.value))) + p.exp_ulps) * p.accumulate.unit
    return _elementwise(x, value, np.abs(value) * np.expm1(np.nan_to_num(relative, nan=0.0, posinf=np.inf)))


def _exp(x: Bounded) -> Bounded:
    p = x.precision
    value = np.exp(x.value)
    unit = p.accumulate.unit
    # A masked score is -inf with an error that means nothing: its exp is an exact zero. Where a finite score underflows
    # float64, nothing can be said if its own error is as large as the distance back to ordinary numbers.
    with np.errstate(over="ignore", invalid="ignore"):
        # In base 2 the argument times log2(e) is rounded, and so is that constant.
        shifted = x.error + (1 + LN_2) * unit * np.abs(x.value)
        positive = value > 0
        lost: Any = False
        if not positive.all():
            lost = ~positive & ~(x.value + shifted <= math.log(p.elementwise.tiny)) & (x.value != -np.inf)
            shifted = np.where(positive, shifted, 0.0)
        exp_error = p.exp_ulps * unit + p.fast_exp
        error = value * (_expm1(shifted) * (1 + exp_error) + exp_error)
        if lost is not False and lost.any():
            error = np.where(lost, np.inf, error)
    if (
        p.row_sum is not None
    ):  # what is lost of one weight, it lacks in the sum; the rest of that rounding is counted there
        error = error + p.row_sum.tiny
    return _elementwise(x, value, error)


def _expm1(x: np.ndarray) -> np.ndarray:
    """e^x - 1 or a little more, for x >= 0: below 1 the rest of the series after x + x^2 / 2 is less than x^3 / 2."""
    return x * (1.0 + 0.5 * x * (1.0 + x)) if _peak(x) <= 1.0 else np.expm1(x)


def _tanh(x: Bounded) -> Bounded:
    p = x.precision
    return _elementwise(x, np.tanh(x.value), _at_most_two(x.error) + p.exp_ulps * p.accumulate.unit)


def _at_most_two(error: Array) -> Array:
    """Of a function with values in [-1, 1]: but past the largest number its argument may be NaN."""
    return np.where(np.isfinite(error), np.minimum(error, 2.0), np.inf)


def _log(x: Bounded) -> Bounded:
    """The logarithm is that of a row's sum, which may be made of rounded weights."""
    p = x.precision
    relative = 0.0 if p.row_sum is None else p.row_sum.unit
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.log(x.value)
        lost = x.error + relative * (np.abs(x.value) + x.error)
        room = x.value - lost
        error = np.where(room > 0, lost / room, np.where((x.value == 0) & (x.errors == 0), 0.0, np.inf))
    return _elementwise(x, value, error + p.exp_ulps * p.accumulate.unit)


def _sqrt(x: Bounded) -> Bounded:
    value = np.sqrt(x.value)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.where(value > 0, x.error / value, np.sqrt(x.error))
    return _elementwise(x, value, error)


def _maximum(x: Any, y: Any) -> Bounded:
    """Of two numbers, as in relu: exact. Where one is larger whatever the errors, the other's has no part in it."""
    (a, da), (b, db) = _parts(x), _parts(y)
    error = np.where(a - da > b + db, da, np.where(b - db > a + da, db, np.maximum(da, db)))
    return _owner(x, y)._like(np.maximum(a, b), error)


def _heaviside(x: Bounded, at_zero: float) -> Bounded:
    """The slope of relu. At zero every number between 0 and 1 is a slope; so it is where the sign is open."""
    return x._like(np.heaviside(x.value, at_zero), np.where(np.abs(x.value) <= x.error, 1.0, 0.0))


def _wave(function: np.ufunc) -> Rule:
    def rule(x: Bounded) -> Bounded:
        p = x.precision
        error = _at_most_two(x.error) + p.trig_ulps * p.accumulate.unit
        return _elementwise(x, function(x.value), error)

    return rule


def _operand(x: Any, p: Precision) -> tuple[Any, Array]:
    """A matrix operand: rounded to the operand format where it is finer than that."""
    if not isinstance(x, Bounded):
        return x, 0.0
    return x.value, (_round(x.value, x.error, p.operand) if x.unit < p.operand.unit else x.error)


class Product(Bounded):
    """A matrix product that remembers its `operands`: a sum of such products is one long sum, or one of stored parts."""

    __slots__ = ("operands",)

    def __init__(self, value: Any, error: Array, precision: Precision, operands: tuple[Any, Any]) -> None:
        super().__init__(value, error, precision, precision.elementwise.unit)
        self.operands = operands


def _matmul(x: Any, y: Any) -> Product:
    p = _owner(x, y).precision
    value, error = _product(x, y, p)
    return Product(value, _once_stored(value, error, p), p, (x, y))


def _product(x: Any, y: Any, p: Precision) -> tuple[np.ndarray, np.ndarray]:
    """A matrix product in an accumulator, whatever the order of its terms: the value and the error."""
    (a, da), (b, db) = _operand(x, p), _operand(y, p)
    terms = a.shape[-1]
    # A product of two inputs is the scores: an implementation may have folded the scale into either or both operands.
    folded = p.folded if _exact(da) and _exact(db) else 0
    g = gamma(terms + folded, p.accumulate.unit)
    # In one product where b is exact: (gamma (|A| + dA) + dA) |B|.
    magnitude_b = np.abs(b)
    with np.errstate(invalid="ignore", over="ignore"):  # as in _multiply; gamma too may be infinite
        left = np.abs(a) * g if _exact(da) else g * (np.abs(a) + da) + da
        value = np.asarray(a @ b)
        error = left @ (magnitude_b if _exact(db) else magnitude_b + db)
        if not _exact(db):
            error += np.abs(a) @ np.broadcast_to(db, b.shape)
    error = _unless_unknown(
        error, value, error, g * p.accumulate.huge
    )  # a partial sum may overflow although the total does not
    error += 2 * terms * p.accumulate.tiny
    if folded and p.op_by_op:
        error += 2 * p.elementwise.unit * (np.abs(a) @ np.abs(b))
    if p.scaled_tiny:
        error += _of_scaled_inputs(a, da, b, db, p.scaled_tiny)
    if p.op_by_op and terms > 1 and 1 in (a.shape[-2:-1] + b.shape[-1:]):
        error += _of_stored_terms(a, da, b, db, p)
    return value, error


def _of_scaled_inputs(a: np.ndarray, da: Array, b: np.ndarray, db: Array, tiny: float) -> Array:
    """What a product of inputs, or of one, adds if the input may be off by `tiny`."""
    error: Array = 0.0
    if _exact(db):
        error = tiny * (np.abs(a) + da).sum(-1, keepdims=True)
    if _exact(da):
        error = error + tiny * (np.abs(b) + db).sum(-2, keepdims=True)
    return error


def _of_stored_terms(a: np.ndarray, da: Array, b: np.ndarray, db: Array, p: Precision) -> np.ndarray:
    """What the terms of a product of a matrix and a vector add if each is stored before they are added: op by op it may be an
    elementwise product and a sum, as torch.einsum makes of it where the vector is one of width one."""
    with np.errstate(invalid="ignore", over="ignore"):
        magnitude = (np.abs(a) + da) @ (np.abs(b) + db)
    error = p.elementwise.unit * magnitude + a.shape[-1] * p.elementwise.tiny
    return _unless_unknown(error, magnitude, magnitude, p.elementwise.huge)


def _once_stored(value: np.ndarray, error: Array, p: Precision) -> Array:
    """The error of what leaves an accumulator: op by op it is rounded as an elementwise result is."""
    return _round(value, error, p.elementwise) if p.op_by_op else error


def _sum(x: Bounded, axis: Any = None, keepdims: bool = False) -> Bounded:
    if isinstance(x, Product) and isinstance(axis, int) and not keepdims and 0 <= axis < x.ndim - 2:
        return _sum_of_products(x, axis)
    p = x.precision
    value = np.add.reduce(x.value, axis=axis, keepdims=keepdims)  # type: ignore[call-overload]
    terms = x.value.size // max(value.size, 1)
    errors = np.add.reduce(x.errors, axis=axis, keepdims=keepdims)  # type: ignore[call-overload]
    magnitude = np.add.reduce(np.abs(x.value), axis=axis, keepdims=keepdims) + errors  # type: ignore[call-overload]
    error = gamma(terms, p.accumulate.unit) * magnitude + errors + terms * p.accumulate.tiny
    if not _peak(magnitude) <= p.accumulate.huge:  # so may a partial sum
        error = np.where(magnitude > p.accumulate.huge, np.inf, error)
    return Bounded(value, _once_stored(np.asarray(value), error, p), p, p.elementwise.unit)


def _sum_of_products(x: Product, axis: int) -> Bounded:
    """The sum of matrix products over an axis before the last two: one long sum in any order, or one of stored parts."""
    p, batch = x.precision, x.shape[:-2]

    def long(operand: Any, at: int) -> Any:
        """The axis moved to the place before number `at` from the end, and joined with that."""
        whole = np.broadcast_to(operand, (*batch, *operand.shape[-2:]))
        moved = np.moveaxis(whole, axis, at - 1)
        joined = (moved.shape[at - 1] * moved.shape[at], *moved.shape[at:][1:])
        return np.reshape(moved, (*moved.shape[: at - 1], *joined))

    left, right = x.operands
    value = np.add.reduce(x.value, axis=axis)
    error = _product(long(left, -1), long(right, -2), p)[1] + _of_parts(x, axis)
    return Bounded(value, _once_stored(value, error, p), p, p.elementwise.unit)


def _of_parts(x: Product, axis: int) -> Array:
    """What the parts of a sum add to its error if each is stored before: half a unit in the last place, or half the smallest
    number, for each. Op by op the sums of some of them are results too, and so stored."""
    p, parts = x.precision, x.shape[axis]
    stored = p.elementwise if p.parts is None else p.parts
    if parts < 2 or stored.unit <= p.accumulate.unit:
        return 0.0
    magnitude = np.add.reduce(np.abs(x.value) + x.errors, axis=axis)
    between = parts - 2 if p.op_by_op else 0
    error = gamma(1 + between, stored.unit) * magnitude + (parts + between) * stored.tiny
    error *= 1 + gamma(parts, p.accumulate.unit)
    return error if _peak(magnitude) <= stored.huge else np.where(magnitude > stored.huge, np.inf, error)


def _merged(x: Bounded) -> Bounded:
    """A product of weights and values. Its splits may be stored before they are merged: each is rounded once, and their shares
    add up to one. The sum that divides a row may be made of rounded weights: that is one factor for the whole row."""
    p = x.precision
    if not isinstance(x, Product) or (p.splits is None and p.row_sum is None):
        return x
    error: Array = x.error
    if p.row_sum is not None:
        error = error + gamma(1, p.row_sum.unit) * (np.abs(x.value) + error)
    if p.splits is not None:
        (a, da), (b, db) = (_operand(operand, p) for operand in x.operands)
        with np.errstate(invalid="ignore", over="ignore"):
            magnitude = (np.abs(a) + da) @ (np.abs(b) + db)
        error = error + p.splits.unit * magnitude + p.splits.tiny
        error = _unless_unknown(error, x.value, magnitude, p.splits.huge)
    return Bounded(x.value, error, p, x.unit)


def _max(x: Bounded, axis: Any = None, keepdims: bool = False, initial: Any = np._NoValue) -> Bounded:
    """The shift of a softmax: exact. Its error stands for how implementations may arrive at it.

    An online softmax rescales once a tile of keys; one that merges splits of the keys, or that keeps the log-sum-exp for the
    gradients, rounds numbers of this magnitude twice more; or once more for each further tile, if they are merged in sequence.
    (With r_j what merge j rounds in the log-sum-exp, the weight of tile i is off by the factor exp(sum of r_j, j >= i).)
    """
    p = x.precision
    value = np.maximum.reduce(x.value, axis=axis, keepdims=keepdims, initial=initial)  # type: ignore[call-overload]
    terms = x.value.size // max(value.size, 1)
    rescales = -(-terms // p.tile) - 1
    roundings = 2.0 + (max(rescales, 0) if p.in_sequence else 0)
    error = np.abs(np.where(np.isfinite(value), value, 0.0)) * (roundings * p.accumulate.unit)
    if rescales > 0:
        error += rescales * (p.exp_ulps + 2) * p.accumulate.unit
    if p.contracted:
        sizes = np.where(np.isfinite(x.value), np.abs(x.value), 0.0)
        largest = np.maximum.reduce(sizes, axis=axis, keepdims=keepdims, initial=0.0)  # type: ignore[call-overload]
        error = np.where(largest > p.largest_score, np.inf, error)
    return Bounded(value, error, p, x.unit)


def _positive(x: Bounded) -> Bounded:
    p = x.precision
    if p.output.unit <= x.unit:
        return x
    return Bounded(x.value, _round(x.value, x.error, p.output), p, p.output.unit)


def _where(condition: Any, x: Any, y: Any) -> Bounded:
    if isinstance(condition, Bounded):
        raise TypeError("a condition is a plain array")
    owner, condition = _owner(x, y), np.asarray(condition)
    if y.__class__ is float and owner is x and condition.shape == x.value.shape and condition.all():
        return x  # the usual case of a guard
    unit = min(z.unit for z in (x, y) if isinstance(z, Bounded))
    (a, da), (b, db) = _chosen(x, owner.precision), _chosen(y, owner.precision)
    error = 0.0 if _exact(da) and _exact(db) else np.where(condition, da, db)
    return Bounded(np.where(condition, a, b), error, owner.precision, unit)


def _chosen(x: Any, p: Precision) -> tuple[Any, Array]:
    """A plain number stands in the working format: one that is not representable there (a third) is rounded to it."""
    if isinstance(x, Bounded):
        return x.value, x.error
    if x.__class__ is float and (x in (0.0, 1.0) or not math.isfinite(x)):
        return x, 0.0
    mantissa, _ = np.frexp(x)
    with np.errstate(invalid="ignore"):
        representable = ~np.isfinite(x) | (mantissa / p.elementwise.unit % 1 == 0)
    return x, 0.0 if representable.all() else np.where(representable, 0.0, np.abs(x) * p.elementwise.unit)


def _joined(join: Callable[..., Any]) -> Rule:
    def rule(arrays: Any, axis: int = 0) -> Bounded:
        owner = _owner(*arrays)
        pieces = [
            x if isinstance(x, Bounded) else Bounded(x, 0.0, owner.precision, owner.unit) for x in arrays
        ]
        value = join([x.value for x in pieces], axis=axis)
        unit = min(x.unit for x in pieces)
        return Bounded(value, join([x.errors for x in pieces], axis=axis), owner.precision, unit)

    return rule


def _broadcast_to(x: Bounded, shape: Any) -> Bounded:
    return x._like(np.broadcast_to(x.value, shape), x._error_map(lambda e: np.broadcast_to(e, shape)))


def _moving(function: Callable[..., Any]) -> Rule:
    return lambda x, *args, **kwargs: x._moved(lambda part: function(part, *args, **kwargs))


def _on_values(function: Callable[..., Any]) -> Rule:
    """Comparisons and predicates look at the values only."""
    return lambda *xs: function(*[_parts(x)[0] for x in xs])


_UFUNCS: dict[Any, Rule] = {
    np.add: _add, np.subtract: _subtract, np.multiply: _multiply, np.divide: _divide, np.matmul: _matmul,
    np.power: _power, np.exp: _exp, np.log: _log, np.tanh: _tanh, np.sqrt: _sqrt, np.maximum: _maximum,
    np.sin: _wave(np.sin), np.cos: _wave(np.cos), np.positive: _positive, np.negative: Bounded.__neg__,
    np.heaviside: _heaviside,
    np.absolute: lambda x: x._like(np.abs(x.value), x.error),
    **{f: _on_values(f) for f in (np.isfinite, np.isnan, np.isinf, np.greater, np.greater_equal, np.less, np.less_equal,
                                  np.equal, np.not_equal)},
}  # fmt: skip


_FUNCTIONS: dict[Any, Rule] = {
    np.sum: _sum, np.max: _max, np.copy: _merged, np.where: _where, np.broadcast_to: _broadcast_to,
    np.concatenate: _joined(np.concatenate), np.stack: _joined(np.stack),
    **{f: _moving(f) for f in (np.swapaxes, np.reshape, np.repeat, np.transpose, np.moveaxis, np.take, np.diagonal,
                               np.expand_dims, np.squeeze, np.flip)},
    np.shape: lambda x: x.shape, np.ndim: lambda x: x.ndim,
}  # fmt: skip
