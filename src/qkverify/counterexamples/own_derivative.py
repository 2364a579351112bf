"""Whether wrong gradients are the derivatives of the function's own output: then the output is what is wrong, and not the
backward pass.

The slope of sum(upstream * output) is measured on the function itself, by central differences of three step lengths. How far it
may be off follows from how much the three differ, and from the bounds of the outputs. A function with a wrong output rounds
something else than the problem asks for, often of more keys: its errors are taken to be those of attention to all keys, where
these are larger.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from qkverify.problem.attention_problem import Problem
from qkverify.rounding import FORMATS, Bounded
from qkverify.runs.run import Run

LENGTHS = (4, 2, 1)  # of a step, in units of the shortest one

Array = np.ndarray


@dataclass(frozen=True)
class Slope:
    """The change of sum(upstream * output) over a step, and how far it may be off."""

    change: float
    error: float

    def is_that_of(self, gradient: Array, error: Array, step: Array) -> bool:
        """Whether a gradient with an error predicts the change."""
        distance = abs(self.change - float((gradient * step).sum()))
        return distance <= self.error + float((error * np.abs(step)).sum())


def follows_own_output(
    run: Run, problem: Problem, got: Mapping[str, Array], exact: Mapping[str, Bounded]
) -> bool | None:
    """Whether the gradients `got` of a problem, which are not `exact`, are those of what the function returns.

    None where that cannot be told: where the output is not finite, or so coarse that the exact gradients fit it as well.
    """
    generator, told = np.random.default_rng(5), False
    to_all_keys = run.gradient_bounds(_unmasked(problem))
    for name, bounded in exact.items():
        array = getattr(problem, name, None)
        if array is None or name not in got or not np.size(array):
            continue
        direction = generator.standard_normal(np.shape(array))
        step, slope = _slope(run, problem, name, direction)
        gradient, error = np.asarray(got[name], np.float64), _larger(bounded, to_all_keys[name])
        if not np.isfinite([slope.change, slope.error, gradient.sum(), error.sum()]).all():
            return None
        if not slope.is_that_of(gradient, error, step):
            return False
        told = told or not slope.is_that_of(np.asarray(bounded.value), error, step)
    return True if told else None


def _slope(run: Run, problem: Problem, name: str, direction: Array) -> tuple[Array, Slope]:
    """The shortest step along a direction, as the format holds it, and the change of the output over it."""
    array = np.asarray(getattr(problem, name))
    format = FORMATS[run.dtype]
    size = max(float(np.abs(array.astype(np.float64)).max()), 1.0)
    shortest = size * format.unit ** (1 / 3) / LENGTHS[0]  # where truncation and rounding are about as large
    slopes, step = [], direction
    noise = 0.0
    for length in LENGTHS:
        ends = [(array + side * length * shortest * direction).astype(array.dtype) for side in (1, -1)]
        step = ends[0].astype(np.float64) - ends[1].astype(np.float64)
        (above, more), (below, less) = (_total(run, problem.replace(**{name: end})) for end in ends)
        slopes.append((above - below) / length)
        noise = max(noise, (more + less) / length)
    spread = abs(slopes[0] - slopes[1]) + abs(slopes[1] - slopes[2])
    return step, Slope(slopes[-1], spread + noise)


def _total(run: Run, problem: Problem) -> tuple[float, float]:
    """sum(upstream * output) of a problem, and the part of it that the bounds leave open."""
    upstream = np.asarray(problem.upstream, np.float64)
    output = np.asarray(run.values(problem), np.float64)
    errors = _larger(run.bound(problem)[0], run.bound(_unmasked(problem))[0])
    return float((upstream * output).sum()), float((np.abs(upstream) * errors).sum())


def _unmasked(problem: Problem) -> Problem:
    return problem.replace(mask=None, causal=False, window=None, key_lengths=None)


def _larger(bounded: Bounded, other: Bounded) -> Array:
    """The larger error of each element; that of `bounded` where the other is not known."""
    return np.asarray(np.fmax(bounded.errors, np.where(np.isfinite(other.errors), other.errors, 0.0)))
