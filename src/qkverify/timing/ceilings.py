"""What this device reaches at best, measured in the same run: a large matrix product, and a large copy.

A data sheet's peak belongs to another clock rate, another cooler and nobody's program. A measured product and
copy are reached by real code on this very machine today, so "61 % of the matrix product" says how much is
left. The product is tried in growing sizes, then again in the size that did best, and the best sample of all
counts: a ceiling is what was seen to be possible. (Taking the largest size alone is biased on a machine that
others use too: a product that outlasts a time slice always shares it.) A GPU is warmed up first, until its
products take equally long: its clocks rise for a while.
"""

from __future__ import annotations

import importlib.util
import math
import operator
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import msgspec
import numpy as np

from qkverify import units
from qkverify.contract import frameworks
from qkverify.results import Ceiling, Timing
from qkverify.results.fingerprint import cores
from qkverify.timing.clocks import Clock, ThreadClock, cache_bytes, clock_for, warm_up
from qkverify.timing.thread_limits import one_thread
from qkverify.timing.workloads import storage

CALL_SECONDS = 0.05  # a product of this length is past warm-up effects and still short
LARGEST_EDGE = 8192
SINGLE_SECONDS = 0.5
COPY_BYTES = {"cpu": 2**27, "cuda": 2**30}  # and at least four times the last-level cache
BLOCK = 256  # edge of the random numbers that larger operands repeat: drawing 8192 x 8192 takes a second


def measure_ceilings(
    cells: Iterable[tuple[str, str]], *, seconds: float = 1.0, clock: Clock | None = None
) -> Iterator[Ceiling]:
    """A matmul ceiling for each (device, dtype), a copy ceiling for each device; about `seconds` for each.

    A dtype that the installed frameworks cannot multiply on a device has no ceiling.
    """
    cells = list(dict.fromkeys(cells))
    for device in dict.fromkeys(device for device, _ in cells):
        arrays = "torch" if importlib.util.find_spec("torch") else "numpy"
        watch = clock or clock_for(arrays, device, frameworks.get(arrays).synchronise)
        if device == "cuda":
            operand = _normal(arrays, device, "float32", 4096, 0)
            warm_up(watch, partial(operator.matmul, operand, operand))
        yield copy_ceiling(arrays, device, watch, seconds)
        for dtype in (dtype for where, dtype in cells if where == device):
            if arrays == "torch" or dtype in (
                "float32",
                "float64",
            ):  # NumPy multiplies halves in a plain loop
                yield matmul_ceiling(arrays, device, dtype, watch, seconds)


def matmul_ceiling(arrays: str, device: str, dtype: str, clock: Clock, seconds: float) -> Ceiling:
    """FLOP/s of a square product, its edge doubled from 256 until a call is long enough or time is short."""
    deadline, edge, best = time.perf_counter() + seconds, 256, TimedProduct(0, None, [])
    while True:
        a, b = (_normal(arrays, device, dtype, edge, seed) for seed in (0, 1))
        call = partial(operator.matmul, a, b)
        clock.sample(call)
        once = clock.sample(call)
        # a share of the time for each size, so that none is judged by one unlucky sample
        timed = TimedProduct(edge, call, _sample(call, clock, time.perf_counter() + seconds / 20, [once]))
        best = max(best, timed, key=lambda product: product.rate)
        # twice the edge is eight times the work, and at least three samples must fit
        if once >= CALL_SECONDS or edge >= LARGEST_EDGE or time.perf_counter() + 4 * 8 * once > deadline:
            break
        edge *= 2
    _sample(best.call, clock, deadline, best.samples)
    return Ceiling(device, dtype, "matmul", best.rate, best.samples)


class TimedProduct(NamedTuple):
    """A square product that was timed."""

    edge: int
    call: Any
    samples: list[float]

    @property
    def rate(self) -> float:
        """FLOP/s of the best sample."""
        return 2 * self.edge**3 / min(self.samples) if self.samples else 0.0


def copy_ceiling(arrays: str, device: str, clock: Clock, seconds: float) -> Ceiling:
    """Bytes/s of a copy, each byte counted twice: once read, once written."""
    deadline, size = time.perf_counter() + seconds, copy_bytes(device)
    # ones, not zeros: an untouched page of zeros is one page of memory however often it is read
    ones = [np.ones(size // 4, np.float32) for _ in range(2)]
    source, target = (frameworks.get(arrays).from_numpy(array, device) for array in ones)
    copy = target.copy_ if arrays == "torch" else lambda source: np.copyto(target, source)
    call = partial(copy, source)
    clock.sample(call)
    samples = _sample(call, clock, deadline, [])
    return Ceiling(device, "float32", "copy", 2 * size / min(samples), samples)


def copy_bytes(device: str) -> int:
    """The size of the copy: too large for any cache of the device, a multiple of 4 KiB."""
    cached = cache_bytes() or 0 if device == "cpu" else 0
    return max(COPY_BYTES[device], 4 * cached)


OVER = 1.1  # by which a call may be faster than a ceiling before this is called none: both scatter


def roofline_seconds(
    flops: int, moved_bytes: int, dtype: str, device: str, ceilings: Iterable[Ceiling]
) -> float | None:
    """The shortest time that the ceilings allow for so much work; None without a ceiling for the dtype.

    A half-precision kernel may multiply in float32, and on processors without units for halves that is
    faster: its ceiling is the higher of both.
    """
    rates = {(c.device, c.what, c.dtype if c.what == "matmul" else ""): c.rate for c in ceilings}
    product, copy = rates.get((device, "matmul", dtype)), rates.get((device, "copy", ""))
    if product is None:
        return None
    if dtype in ("float16", "bfloat16"):
        product = max(product, rates.get((device, "matmul", "float32"), 0.0))
    return max(flops / product, moved_bytes / copy if copy else 0.0)


def fraction_of_roofline(timing: Timing, seconds: float, ceilings: Iterable[Ceiling]) -> float | None:
    """The share of the measured roofline that a call of `seconds` reaches, 1.0 being all of it.

    None without a ceiling, and for a call that is faster: its operands came from caches, or the ceiling was measured on a busy
    machine. Of neither is there a share to tell. What no ceiling of the device allows is `impossible`.
    """
    shortest = roofline_seconds(timing.flops, timing.bytes, timing.dtype, timing.device, ceilings)
    return None if shortest is None or shortest > OVER * seconds else shortest / seconds


def exceeds_products(timing: Timing, seconds: float, ceilings: Iterable[Ceiling]) -> bool:
    """Whether a call of `seconds` multiplies faster than the products of its dtype did: then their ceiling is too low."""
    shortest = roofline_seconds(timing.flops, 0, timing.dtype, timing.device, ceilings)
    return shortest is not None and shortest > seconds


def single_thread_ceilings(dtype: str) -> list[Ceiling]:
    """What all threads of this CPU could reach if each were as fast as one by itself, in the time that this one computed:
    whatever else runs here, it is not in that. In a dtype and in float32, for a kernel may multiply in either."""
    arrays = "torch" if importlib.util.find_spec("torch") else "numpy"
    dtypes = ("float32", dtype) if arrays == "torch" or dtype == "float64" else ("float32",)
    with one_thread():
        ceilings = [
            matmul_ceiling(arrays, "cpu", operand_dtype, ThreadClock(), SINGLE_SECONDS)
            for operand_dtype in dict.fromkeys(dtypes)
        ]
    return [msgspec.structs.replace(ceiling, rate=cores() * ceiling.rate) for ceiling in ceilings]


def impossible(timing: Timing, seconds: float, ceilings: Iterable[Ceiling]) -> str:
    """Why a call cannot have taken so few seconds, or "": above what the device was seen to reach no time is believed.

    The products of all dtypes count, for a kernel may multiply in another one; a copy counts only for bytes that no cache
    holds.
    """
    here = [c for c in ceilings if c.device == timing.device]
    product = max((c.rate for c in here if c.what == "matmul"), default=math.inf)
    copy = max((c.rate for c in here if c.what == "copy"), default=math.inf)
    uncached = timing.bytes if timing.bytes > COPY_BYTES[timing.device] else 0
    least = max(timing.flops / product, uncached / copy)
    if seconds >= least:
        return ""
    return (
        f"a call in {units.seconds(seconds)} would be {units.ratio(least / seconds)} times faster than the best product and copy "
        "measured here allow for its work: no time, but a failure of the measurement or of the kernel"
    )


def _sample(call: Callable[[], Any], clock: Clock, deadline: float, samples: list[float]) -> list[float]:
    """At least three samples, and as many as fit before the deadline, up to a hundred."""
    while len(samples) < 3 or (len(samples) < 100 and time.perf_counter() + max(samples) < deadline):
        samples.append(clock.sample(call))
    return samples


def _normal(arrays: str, device: str, dtype: str, edge: int, seed: int) -> Any:
    numbers = np.random.default_rng(seed).standard_normal((BLOCK, BLOCK), dtype=np.float32)
    times = edge // BLOCK
    return frameworks.get(arrays).from_numpy(np.tile(numbers.astype(storage(dtype)), (times, times)), device)
