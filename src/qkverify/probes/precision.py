"""How a matrix product and an exp really round, found out from outside by small exact examples.

The bounds follow from a declared `Precision`. Whether a device keeps to it can be measured: a product of numbers
that were chosen so that every way of rounding gives another answer. All numbers are powers of two (or three
times one), so nothing is rounded but what is asked about. After M. Fasi, N. Higham, M. Mikaitis, S. Pranesh,
Numerical behavior of NVIDIA tensor cores, PeerJ Computer Science 7:e330 (2021), which gives the accumulator to
the unit by hand; here it is inside of the product, so order and blocks are found out as well:

operands      1 + 2^-j times 1: the largest j that comes back is the number of bits that operands keep
accumulator   6144 + 2^(12-j) - 6144, its terms at several distances: the largest j that never gets lost
rounding      the same with one and three quarters of the last bit, of both signs: a whole bit, or gone
block         6144 - 6144 + small: in order it is exact; units that add n products at once align all of them to the
              largest, and lose the small one while it is among the n
subnormals    as operand, and as result

A unit is any function from two float64 arrays (M,K), (K,N) to one (M,N): tests give simulated units, whose ways
are known. The ugly spot: a library may choose another kernel for another size, so what is found is found for
products of this size; on CUDA they are padded until a large kernel is chosen.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from qkverify.errors import raised
from qkverify.results import Rounding, finite
from qkverify.rounding import Format, Precision

Array = np.ndarray
Multiply = Callable[[Array, Array], Array]

LENGTH = 256  # of the sums
BIG = 12  # exponent of the number that small ones are lost beside
SMALL = 8  # bits by which a number lies below the accumulator's last, so that no guard bit holds it
# Where the big number, the small one and the big one's negative stand: next to each other, and at the distances at which
# partial sums repeat in vector units, tiles and unrolled loops, from either end.
PLACES = (
    (0, 1, 2),
    (0, 4, 8),
    (0, 16, 32),
    (0, 64, 128),
    (0, 128, 192),
    (0, 1, 255),
    (255, 254, 253),
    (255, 127, 63),
)


class Storage(NamedTuple):
    """A format by its fraction bits and the exponent of its smallest normal number."""

    name: str
    bits: int
    least: int

    @property
    def deepest(self) -> int:
        """The most bits of an accumulator that a result in this format can show."""
        return min(54, BIG - SMALL - (self.least - self.bits))


STORAGES = {storage.name: storage for storage in (Storage("float64", 52, -1022), Storage("float32", 23, -126),
                                      Storage("bfloat16", 7, -126), Storage("float16", 10, -14))}  # fmt: skip


@dataclass(frozen=True)
class ProductRounding:
    """How a matrix product rounds. Bits are fraction bits, the leading one not counted.

    `operand_rounding` is "none" where operands keep all bits of their storage; `block` is how many products are
    added at once (1: one by one, in order), None where the order is another (several partial sums);
    `subnormal_operands` and `subnormal_results` say whether they are kept.
    """

    operand_bits: int
    operand_rounding: str
    accumulator_bits: int
    accumulator_rounding: str
    block: int | None
    subnormal_operands: bool
    subnormal_results: bool

    @property
    def operand_unit(self) -> float:
        """The unit roundoff that a bound has to allow for operands: twice as much where bits are cut off."""
        return _unit(self.operand_bits, self.operand_rounding)

    @property
    def accumulator_unit(self) -> float:
        """Likewise for sums."""
        return _unit(self.accumulator_bits, self.accumulator_rounding)


def _unit(bits: int, rounding: str) -> float:
    return 2.0 ** -(bits + (rounding in ("nearest", "none")))


def probe(multiply: Multiply, operand: Storage, result: Storage | None = None) -> ProductRounding:
    """What is found of a product whose operands are stored in one format, and its results in the same or another."""
    storage = result or operand
    operand_bits, operand_rounding = operands(multiply, operand)
    bits = accumulator_bits(multiply, operand if operand.deepest < storage.deepest else storage)
    return ProductRounding(
        operand_bits,
        operand_rounding,
        bits,
        accumulator_rounding(multiply, bits) if bits < operand.deepest else "none",
        block(multiply, bits) if bits < operand.deepest else None,
        *subnormals(multiply, operand, storage),
    )


def operands(multiply: Multiply, storage: Storage) -> tuple[int, str]:
    """Fraction bits that both operands keep, and how the rest is rounded: "nearest", "toward zero", or "none" is lost."""

    def kept(numbers: Sequence[float]) -> Array:
        wanted = np.array(numbers)
        left = np.zeros((len(numbers), LENGTH))
        left[:, 0] = wanted
        ones = np.zeros((LENGTH, len(numbers)))
        ones[0] = 1.0
        return np.stack([multiply(left, ones)[:, 0], multiply(ones.T, left.T)[0]])

    steps = [1 + 2.0**-j for j in range(1, storage.bits + 1)]
    exact = (kept(steps) == steps).all(axis=0)
    bits = int(np.argmin(exact)) if not exact.all() else storage.bits
    if bits == storage.bits:
        return bits, "none"
    if bits + 2 > storage.bits:
        return bits, "unknown"
    products = set(kept([1 + 3 * 2.0 ** -(bits + 2)]).ravel().tolist())
    names = {1 + 2.0**-bits: "nearest", 1.0: "toward zero"}
    return bits, names.get(products.pop(), "mixed") if len(products) == 1 else "mixed"


def accumulator_bits(multiply: Multiply, storage: Storage) -> int:
    """The most bits below a number that its sum with a smaller one never loses, wherever in the sum they stand."""
    depths = range(1, storage.deepest + 1)
    sums = [[_big(1), (BIG - j, 1), _big(-1)] for j in depths]
    exact = np.array([2.0 ** (BIG - j) for j in depths])
    held = np.all([_sums(multiply, sums, [place] * len(sums)) == exact for place in PLACES], axis=0)
    return int(np.argmin(held)) if not held.all() else storage.deepest


def accumulator_rounding(multiply: Multiply, bits: int) -> str:
    """ "nearest", "toward zero", "down", "up" or "mixed", by what becomes of one and of three quarters of the last bit.

    A number that is small beside the big one comes back as a whole last bit, or as nothing. To nearest that
    depends on the number alone; downward and upward on its sign; toward zero on whether the big number of its own
    sign or the other came first, which is the same for both signs and both quarters.
    """
    last, outcomes = 2.0 ** (BIG - bits), dict[tuple[int, int], list[bool]]()
    met: Any = None
    for sign, quarters in ((1, 1), (1, 3), (-1, 1), (-1, 3)):
        terms = [_big(sign), (BIG - bits - 2, quarters * sign), _big(-sign)]
        sums = _sums(multiply, [terms] * len(PLACES), PLACES) * sign
        rounded = sums != quarters / 4 * last  # where the big numbers met first, nothing was
        met = rounded if met is None else met
        if (met != rounded).any() or not set(sums[met].tolist()) <= {0.0, last}:
            return "mixed"
        outcomes[sign, quarters] = (sums[met] == last).tolist()
    return _direction(outcomes)


def _direction(grown: dict[tuple[int, int], list[bool]]) -> str:
    """The rounding by which numbers grow to a whole bit or vanish, by sign and quarters, at each place."""
    low, high, minus_low, minus_high = (grown[key] for key in ((1, 1), (1, 3), (-1, 1), (-1, 3)))
    if not any(low + minus_low) and all(high + minus_high):
        return "nearest"
    if low == high == minus_low == minus_high:
        return "toward zero"
    if not any(low + high) and all(minus_low + minus_high):
        return "down"
    if all(low + high) and not any(minus_low + minus_high):
        return "up"
    return "mixed"


def _big(sign: int) -> tuple[int, int]:
    """Half again as large as 2^BIG: on either side of it the last bit is worth the same."""
    return BIG - 1, 3 * sign


def block(multiply: Multiply, bits: int) -> int | None:
    """How many products are added at once: 1 for one after the other, None for another order."""
    places = [(0, 1, at) for at in range(2, LENGTH)]
    small = 2.0 ** (BIG - bits - SMALL)
    terms = [_big(1), _big(-1), (BIG - bits - SMALL, 1)]
    lost = [
        at
        for (_, _, at), x in zip(places, _sums(multiply, [terms] * len(places), places), strict=True)
        if x != small
    ]
    if not lost:
        return 1
    return lost[-1] + 1 if lost == list(range(2, lost[-1] + 1)) and lost[-1] + 1 < LENGTH else None


def subnormals(multiply: Multiply, operand: Storage, result: Storage) -> tuple[bool, bool]:
    """Whether a subnormal operand counts, and whether a subnormal result comes back.

    Where no two operands have so small a product, nothing is lost, and results count as kept.
    """
    half = result.least // 2
    factors = [(operand.least - 2, 8), (half, result.least - 2 - half)]
    counted = []
    for left, right in factors:
        if min(left, right) < operand.least - operand.bits:
            counted.append(True)
            continue
        a, b = np.zeros((1, LENGTH)), np.zeros((LENGTH, 1))
        a[0, 0], b[0, 0] = 2.0**left, 2.0**right
        counted.append(bool(multiply(a, b)[0, 0] == 2.0 ** (left + right)))
    return counted[0], counted[1]


def _sums(
    multiply: Multiply, sums: Sequence[Sequence[tuple[int, int]]], places: Sequence[Sequence[int]]
) -> Array:
    """Each sum of terms (exponent, factor), its terms at its places: one row times one column each, (n,)."""
    a, b = np.zeros((len(sums), LENGTH)), np.zeros((LENGTH, len(sums)))
    for row, (terms, where) in enumerate(zip(sums, places, strict=True)):
        for (exponent, factor), at in zip(terms, where, strict=True):
            a[row, at] = factor * 2.0 ** (exponent - exponent // 2)
            b[at, row] = 2.0 ** (exponent // 2)
    return np.diagonal(multiply(a, b))


class ExpError(NamedTuple):
    """The largest relative error of an exp, in unit roundoffs; and `own`, the largest that is left when the rounding of the
    argument's product with log2 e, |x| unit roundoffs, is taken away: bounds count that by itself (see `rounding`)."""

    units: float
    own: float


def exp_error(exp: Callable[[Array], Array], storage: Storage, points: int = 2**16) -> ExpError:
    """How wrong an exp is where its result is a normal number.

    Points lie evenly over the whole range; the longest floats of this machine are the truth.
    """
    most = 2.0**-storage.least * 1.99  # below the largest number
    ends = math.log(2.0**storage.least) + 1e-6, math.log(most)
    x = stored(np.linspace(*ends, points), storage)
    exact = np.exp(x.astype(np.longdouble))
    normal = (exact >= 2.0**storage.least) & (exact <= most)
    units = np.abs(exp(x)[normal] - exact[normal]) / exact[normal] * 2 ** (storage.bits + 1)
    return ExpError(float(units.max()), float(np.maximum(units - np.abs(x[normal]), 0).max()))


def stored(x: Array, storage: Storage) -> Array:
    """Numbers cut to the bits of a format: what enters a unit must be held by it."""
    fraction, exponent = np.frexp(x)
    return np.asarray(np.ldexp(np.trunc(np.ldexp(fraction, storage.bits + 1)), exponent - storage.bits - 1))


def departures(rounding: ProductRounding, exp: ExpError | None, declared: Precision) -> list[str]:
    """Where a unit rounds more than a declared precision allows; nothing where its bounds hold."""
    said = []
    for what, unit, allowed in (("operands", rounding.operand_unit, declared.operand),
                                ("accumulator", rounding.accumulator_unit, declared.accumulate)):  # fmt: skip
        if unit > allowed.unit:
            said.append(f"{what} round by up to {_power(unit)}, {allowed.name} allows {_power(allowed.unit)}")
    if not rounding.subnormal_results and not _may_flush(declared.output):
        said.append(f"subnormal results become zero, {declared.output.name} keeps them")
    if exp is not None and exp.own > declared.exp_ulps:
        said.append(
            f"exp is wrong by {exp.own:.3g} unit roundoffs beside its argument's, {declared.exp_ulps:g} are allowed"
        )
    return said


def _may_flush(number_format: Format) -> bool:
    storage = STORAGES.get(number_format.name)
    return storage is None or number_format.tiny >= 2.0**storage.least


def _power(unit: float) -> str:
    return f"2^{round(math.log2(unit))}"


class AlignedRow(NamedTuple):
    """One line of the table: what was probed, what was found, and where it departs from the declared model."""

    name: str
    product: ProductRounding
    exp: ExpError | None
    departures: list[str]


def rows(device: str) -> Iterator[AlignedRow]:
    """Every product that torch offers on a device, under each of its settings; NumPy's on the CPU."""
    if device == "cpu":
        for name in ("float64", "float32"):
            yield _row(f"numpy {name}", partial(_numpy_product, name), partial(_numpy_exp, name), name)
    try:
        import torch
    except ImportError:
        return
    for name in ("float64", "float32", "bfloat16", "float16"):
        dtype = getattr(torch, name)
        for setting, value in SETTINGS[device].get(name, [("", None)]):
            if setting and not _has(torch, setting):
                continue
            with _set(torch, setting, value):
                label = f"torch {name}" + (f", {setting.rpartition('.')[2]} {value}" if setting else "")
                yield _row(label, torch_product(dtype, device), torch_exp(dtype, device), name)
    if device == "cuda":
        yield from triton_rows(device)


def records(device: str) -> Iterator[Rounding]:
    """The rows as they are kept. A probe that raises ends the table with its reason: a run goes on without it."""
    name = "all"
    try:
        for name, product, exp, said in rows(device):
            errors = (None, None) if exp is None else (finite(exp.units), finite(exp.own))
            yield Rounding(
                unit=name,
                device=device,
                **asdict(product),
                exp_units=errors[0],
                exp_own=errors[1],
                departures=said,
            )
    except Exception as error:
        yield Rounding(f"after {name}", device, reason=raised(error))


# What changes how CUDA multiplies; a setting that this torch does not have is left out.
_CUDA = "backends.cuda.matmul."
SETTINGS: dict[str, dict[str, list[tuple[str, Any]]]] = {
    "cpu": {},
    "cuda": {
        "float32": [(_CUDA + "allow_tf32", False), (_CUDA + "allow_tf32", True)],
        "bfloat16": [(_CUDA + "allow_bf16_reduced_precision_reduction", on) for on in (False, True)],
        "float16": [(_CUDA + "allow_fp16_reduced_precision_reduction", on) for on in (False, True)]
        + [(_CUDA + "allow_fp16_accumulation", True)],
    },
}


def _row(
    label: str, multiply: Multiply, exp: Callable[[Array], Array] | None, name: str, stored_as: str = ""
) -> AlignedRow:
    """The probes of a unit whose operands have the format `name`, and its results another one where that is given."""
    storage = STORAGES[name]
    product = probe(multiply, storage, STORAGES[stored_as or name])
    error = None if exp is None else exp_error(exp, storage)
    return AlignedRow(label, product, error, departures(product, error, Precision.fused(name)))


def triton_rows(device: str) -> Iterator[AlignedRow]:
    """`tl.dot` and the exps of Triton; nothing where Triton is not installed."""
    try:
        import torch

        from qkverify.probes import triton_rounding
    except ImportError:
        return
    for name, precisions in {
        "float32": ("ieee", "tf32", "tf32x3"),
        "bfloat16": ("",),
        "float16": ("",),
    }.items():
        for precision in precisions:
            unit = triton_rounding.product(getattr(torch, name), device, precision or "ieee")
            # the precisions differ in their products alone: each exp stands in one row
            base_2 = {"ieee": False, "tf32": True}.get(precision)
            exp = None if base_2 is None else partial(_triton_exp, device, base_2)
            words = [f"triton {name}", precision, {True: "exp2", False: "exp", None: ""}[base_2]]
            yield _row(", ".join(filter(None, words)), unit, exp, name, "float32")


def _triton_exp(device: str, base_2: bool, x: Array) -> Array:
    from qkverify.probes import triton_rounding

    return triton_rounding.exp(device, base_2=base_2, x=x)


def _numpy_product(name: str, a: Array, b: Array) -> Array:
    return np.asarray((a.astype(name) @ b.astype(name)).astype(float))


def _numpy_exp(name: str, x: Array) -> Array:
    return np.asarray(np.exp(x.astype(name)).astype(float))


def torch_product(dtype: Any, device: str, least_edge: int = 1024) -> Multiply:
    """torch's matrix product; on CUDA padded with zeros, so that the kernel is that of large products."""
    import torch

    def multiply(a: Array, b: Array) -> Array:
        rows, columns = a.shape[0], b.shape[1]
        if device == "cuda":
            a = np.pad(a, ((0, max(0, least_edge - rows)), (0, 0)))
            b = np.pad(b, ((0, 0), (0, max(0, least_edge - columns))))
        left, right = (torch.from_numpy(np.ascontiguousarray(x)).to(dtype).to(device) for x in (a, b))
        return np.asarray((left @ right).double().cpu().numpy())[:rows, :columns]

    return multiply


def torch_exp(dtype: Any, device: str) -> Callable[[Array], Array]:
    """torch's exp."""
    import torch

    def exp(x: Array) -> Array:
        there = torch.from_numpy(x).to(dtype).to(device)
        return np.asarray(torch.exp(there).double().cpu().numpy())

    return exp


def _has(torch: Any, setting: str) -> bool:
    path, _, last = setting.rpartition(".")
    return hasattr(operator.attrgetter(path)(torch), last)


@contextmanager
def _set(torch: Any, setting: str, value: Any) -> Iterator[None]:
    """A setting of torch, as it was again afterwards."""
    if not setting:
        yield
        return
    path, _, last = setting.rpartition(".")
    place = operator.attrgetter(path)(torch)
    before = getattr(place, last)
    setattr(place, last, value)
    try:
        yield
    finally:
        setattr(place, last, before)
