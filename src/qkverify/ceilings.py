"""What this device reaches at best, measured in the same run: a large matrix product, and a large copy.

A data sheet's peak belongs to another clock rate, another cooler and nobody's program. A measured product and
copy are reached by real code on this very machine today, so "61 % of the matrix product" says how much is
left. Each is grown until one call takes long enough to be typical, and the best sample counts: a ceiling is
what was seen to be possible.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from qkverify import frameworks
from qkverify.clocks import Clock, clock_for
from qkverify.results import Ceiling, Timing
from qkverify.workloads import storage

CALL_SECONDS = 0.05  # a product of this length is past warm-up effects and still short
LARGEST_EDGE = 8192
COPY_BYTES = {"cpu": 2**27, "cuda": 2**30}  # many times any last-level cache


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
        yield copy_ceiling(arrays, device, watch, seconds)
        for dtype in (dtype for where, dtype in cells if where == device):
            if arrays == "torch" or dtype in (
                "float32",
                "float64",
            ):  # NumPy multiplies halves in a plain loop
                yield matmul_ceiling(arrays, device, dtype, watch, seconds)


def matmul_ceiling(arrays: str, device: str, dtype: str, clock: Clock, seconds: float) -> Ceiling:
    """FLOP/s of a square product, its edge doubled from 256 until a call is long enough or time is short."""
    deadline, edge = time.perf_counter() + seconds, 256
    while True:
        a, b = (_normal(arrays, device, dtype, (edge, edge), seed) for seed in (0, 1))
        call = lambda a=a, b=b: a @ b  # noqa: E731
        clock.sample(call)
        once = clock.sample(call)
        # twice the edge is eight times the work, and at least three samples must fit
        if once >= CALL_SECONDS or edge >= LARGEST_EDGE or time.perf_counter() + 4 * 8 * once > deadline:
            break
        edge *= 2
    samples = _sample(call, clock, deadline, [once])
    return Ceiling(device, dtype, "matmul", 2 * edge**3 / min(samples), samples)


def copy_ceiling(arrays: str, device: str, clock: Clock, seconds: float) -> Ceiling:
    """Bytes/s of a copy, each byte counted twice: once read, once written."""
    deadline = time.perf_counter() + seconds
    # ones, not zeros: an untouched page of zeros is one page of memory however often it is read
    ones = [np.ones(COPY_BYTES[device] // 4, np.float32) for _ in range(2)]
    source, target = (frameworks.get(arrays).from_numpy(array, device) for array in ones)
    copy = target.copy_ if arrays == "torch" else lambda source: np.copyto(target, source)
    call = lambda: copy(source)  # noqa: E731
    clock.sample(call)
    samples = _sample(call, clock, deadline, [])
    return Ceiling(device, "float32", "copy", 2 * COPY_BYTES[device] / min(samples), samples)


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
    """The share of the measured roofline that a call of `seconds` reaches, 1.0 being all of it."""
    shortest = roofline_seconds(timing.flops, timing.bytes, timing.dtype, timing.device, ceilings)
    return None if shortest is None else shortest / seconds


def _sample(call: Callable[[], Any], clock: Clock, deadline: float, samples: list[float]) -> list[float]:
    """At least three samples, and as many as fit before the deadline, up to thirty."""
    while len(samples) < 3 or (len(samples) < 30 and time.perf_counter() + max(samples) < deadline):
        samples.append(clock.sample(call))
    return samples


def _normal(arrays: str, device: str, dtype: str, shape: tuple[int, ...], seed: int) -> Any:
    numbers = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return frameworks.get(arrays).from_numpy(numbers.astype(storage(dtype)), device)
