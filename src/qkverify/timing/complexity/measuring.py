"""Taking the times: one variable of one layer after another, all its sizes and frameworks interleaved.

Sizes grow so that each step doubles the work, until a call takes its share of the budget. Where the sizes end is therefore the
machine's to say, and every record says where they did.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from qkverify.contract import frameworks
from qkverify.errors import raised
from qkverify.results import Complexity, Travel, finite
from qkverify.timing.clocks import Clock, ThreadClock, clock_for
from qkverify.timing.complexity import checking, counting, tracing
from qkverify.timing.complexity.layer import Layer, Sizes
from qkverify.timing.complexity.layers import all_layers
from qkverify.timing.grid import OUT_OF_TIME, Progress
from qkverify.timing.sampling import FEWEST_ROUNDS, Samples, SamplingPlan, Subject, calibrate, interleave
from qkverify.timing.thread_limits import one_thread

FRAMEWORKS = ("numpy", "torch")
LONGEST_SHARE = (
    1 / 60
)  # of a series' seconds for its longest call: all sizes take twice that, and ten rounds fit
LONGEST_SECONDS = 0.02  # a larger budget buys rounds, and not sizes without end
WARM_SHARE = 1 / 2  # of the longest call is what three warm-up samples may take: longer calls have one
SAMPLE_SECONDS = 0.002  # shorter calls are repeated: the first one after another's turn finds the caches cold
MOST_SIZES = 24
MOST_NUMBERS = (
    2**25
)  # in the inputs of a call: drawing them takes a third of a second, and on a GPU longer than all else
LENGTHS = (16, 32, 64, 128)  # at which chains are traced
FIXED = {"d": 2, "k": 3, "r": 9, "A": 2, "B": 2, "C": 2}  # chains do not depend on d


class FrameworkOnDevice(NamedTuple):
    """A framework on a device."""

    framework: str
    device: str


@dataclass(frozen=True)
class LayerSeries:
    """One variable of one layer: what is timed together."""

    layer: Layer
    variable: str

    @property
    def title(self) -> str:
        return f"{self.layer.name} over {self.variable}"

    def sizes(self, step: int) -> dict[str, int]:
        """All sizes at a step: `step` doublings of the work of the first, to the nearest size that is a multiple."""
        span, power = self.layer.spans[self.variable], self.layer.exponents[self.variable]
        size = span.multiple * round(span.start * 2 ** (step / power) / span.multiple)
        return {**span.fixed, self.variable: size}


@dataclass(frozen=True)
class Ready:
    """A layer at one size in one place, warm: how it is sampled, and its multiply-adds."""

    size: int
    subject: Subject
    plan: SamplingPlan
    multiply_adds: int


def series() -> list[LayerSeries]:
    """Everything that is timed, in the order of the layers."""
    return [LayerSeries(layer, variable) for layer in all_layers() for variable in layer.spans]


def places(devices: Sequence[str] = ()) -> list[FrameworkOnDevice]:
    """Where layers can be timed here, among `devices` if there are any."""
    installed = [name for name in FRAMEWORKS if frameworks.missing(name) is None]
    available = [
        FrameworkOnDevice(name, device)
        for name in installed
        for device, reason in frameworks.get(name).devices().items()
        if reason is None
    ]
    return [place for place in available if not devices or place.device in devices]


def measure(
    budget_seconds: float = 20.0,
    *,
    devices: Sequence[str] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> Iterator[Complexity | Travel]:
    """Chains first, then times, each variable's as soon as it is known.

    The budget is for the times, shared equally among the variables; what one leaves goes to those after it, and on a busy machine
    all of them may take half as much again. Chains, and checking that the code is right, take some seconds more.
    """
    for layer in all_layers():
        yield travel(layer)
    all_series, here = series(), places(devices)
    say = progress or (lambda fraction, text: None)
    if budget_seconds:
        for layer, place in itertools.product(all_layers(), here):
            checked(layer, place)
    start = time.perf_counter()
    for number, layer_series in enumerate(all_series):
        say(number / len(all_series), layer_series.title)
        left = (budget_seconds - (time.perf_counter() - start)) / (len(all_series) - number)
        fair = budget_seconds / len(all_series)  # the last ones are not to pay for a machine that became busy
        yield from measure_series(layer_series, here, budget_seconds=max(left, fair / 2), seed=seed + number)


def travel(layer: Layer) -> Travel:
    """Sequential steps and path length of a layer, traced at several lengths."""
    all_sizes = [{**FIXED, "n": n, **({"A": n} if "A" in layer.exponents else {})} for n in LENGTHS]
    paths = [tracing.path(layer, sizes) for sizes in all_sizes] if layer.path else []
    return Travel(
        layer=layer.name,
        source=layer.source,
        steps_theory=layer.steps,
        path_theory=layer.path,
        fixed={name: FIXED[name] for name in layer.exponents if name in ("k", "r")},
        lengths=list(LENGTHS),
        steps=[tracing.steps(layer, sizes) for sizes in all_sizes],
        path=[products for products, _ in paths],
        layers=[layers for _, layers in paths],
    )


def measure_series(
    layer_series: LayerSeries, where: Iterable[FrameworkOnDevice], *, budget_seconds: float, seed: int = 0
) -> list[Complexity]:
    """One record for each place. A layer that is not what its definition says is not timed, and its record says so."""
    start, where = time.perf_counter(), list(where)
    if not budget_seconds:
        return [_record(layer_series, place, [], {}, None, OUT_OF_TIME, None) for place in where]
    longest = min(LONGEST_SECONDS, LONGEST_SHARE * budget_seconds / max(1, len(where)))
    ready, margins, reasons = (
        dict[FrameworkOnDevice, list[Ready]](),
        dict[FrameworkOnDevice, float | None](),
        dict[FrameworkOnDevice, str](),
    )
    with one_thread() as threads:
        for place in where:
            ready[place] = []
            margins[place], reasons[place] = checked(layer_series.layer, place)
            if not reasons[place]:
                reasons[place] = _grow(
                    ready[place], layer_series, place, _clock(place, threads), longest, seed
                )
        samples = _sampled(ready, budget_seconds - (time.perf_counter() - start), seed)
    return [_record(layer_series, p, ready[p], samples, margins[p], reasons[p], threads) for p in where]


@lru_cache(maxsize=64)
def checked(layer: Layer, place: FrameworkOnDevice) -> tuple[float | None, str]:
    """The margin of the layer's result, and why it must not be timed: empty where nothing speaks against it."""
    try:
        margin = checking.margin(layer, *place)
        if margin > 1:
            return margin, f"the result is {margin:.3g} times its bound away from the definition"
        return margin, checking.miscounted(layer, *place)
    except Exception as error:  # this place's own failure: the others go on
        return None, raised(error)


def _grow(
    ready: list[Ready],
    layer_series: LayerSeries,
    place: FrameworkOnDevice,
    clock: Clock,
    longest_seconds: float,
    seed: int,
) -> str:
    """Size upon size, warmed up, until the next call would be too long, or its inputs too large. Gives the reason where it fails
    before: what was ready by then stays."""
    arrays, perform = frameworks.get(place.framework), layer_series.layer.performed_by(place.framework)
    try:
        for sizes in distinct(layer_series.sizes(step) for step in range(MOST_SIZES)):
            drawn = layer_series.layer.inputs(sizes, np.random.default_rng(seed))
            native = layer_series.layer.laid_out(
                place.framework, (arrays.from_numpy(x, place.device) for x in drawn)
            )
            subject = Subject(_call(perform, native, sizes), clock)
            subject.call()  # what is loaded once is not part of the warm-up
            plan = _long_enough(calibrate(subject, limit_seconds=WARM_SHARE * longest_seconds))
            operations = counting.multiply_adds(layer_series.layer, place.framework, native, sizes)
            ready.append(Ready(sizes[layer_series.variable], subject, plan, operations))
            if 2 * plan.call_seconds > longest_seconds or 2 * sum(x.size for x in drawn) > MOST_NUMBERS:
                break
    except Exception as error:  # this place's own failure: the others go on
        return raised(error)
    return ""


def _sampled(
    ready: Mapping[FrameworkOnDevice, Sequence[Ready]], left_seconds: float, seed: int
) -> dict[tuple[FrameworkOnDevice, int], Samples]:
    """All sizes of all places in turn, in at least the fewest rounds."""
    flat = {f"{place} {r.size}": (place, r) for place, sizes in ready.items() for r in sizes}
    # a tenth more than the fewest samples: for what passes between them
    need = 1.1 * FEWEST_ROUNDS * sum(r.plan.sample_seconds for _, r in flat.values())
    samples = interleave(
        {name: r.subject for name, (_, r) in flat.items()},
        budget_seconds=max(need, left_seconds),
        plans={name: r.plan for name, (_, r) in flat.items()},
        seed=seed,
    )
    return {(place, r.size): samples[name] for name, (place, r) in flat.items()}


def _long_enough(plan: SamplingPlan) -> SamplingPlan:
    repeats = max(plan.repeats, math.ceil(SAMPLE_SECONDS / plan.call_seconds))
    return SamplingPlan(repeats, repeats * plan.call_seconds)


def _call(perform: Any, native: tuple[Any, ...], sizes: Sizes) -> Any:
    return lambda: perform(*native, sizes)


def distinct(sizes: Iterable[dict[str, int]]) -> Iterator[dict[str, int]]:
    """Without those that rounding made the same as the one before."""
    before = None
    for point in sizes:
        if point != before:
            yield point
        before = point


@lru_cache(maxsize=8)
def _clock(place: FrameworkOnDevice, threads: int | None) -> Clock:
    """The thread's own where there is one thread, else that of the device."""
    if place.device == "cpu" and threads == 1:
        return ThreadClock()
    return clock_for(place.framework, place.device, frameworks.get(place.framework).synchronise)


def _record(
    layer_series: LayerSeries,
    place: FrameworkOnDevice,
    ready: Sequence[Ready],
    samples: Mapping[tuple[FrameworkOnDevice, int], Samples],
    margin: float | None,
    reason: str,
    threads: int | None,
) -> Complexity:
    timed = [samples[place, r.size] for r in ready]
    return Complexity(
        layer=layer_series.layer.name,
        formula=layer_series.layer.formula,
        factor=layer_series.layer.factor,
        variable=layer_series.variable,
        theory=layer_series.layer.exponents[layer_series.variable],
        implementation=place.framework,
        device=place.device,
        dtype=checking.DTYPE,
        clock=ready[0].subject.clock.name if ready else "host",
        threads=threads if place.device == "cpu" else None,
        fixed=layer_series.layer.spans[layer_series.variable].fixed,
        sizes=[r.size for r in ready],
        multiply_adds=[r.multiply_adds for r in ready],
        seconds=[s.seconds for s in timed],
        rounds=[s.rounds for s in timed],
        margin=finite(margin),
        reason=reason or next((s.reason for s in timed if s.reason), ""),
    )
