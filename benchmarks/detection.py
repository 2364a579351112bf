"""The smallest error that is seen: planted errors of all sizes, before the laws and before two usual ways of comparing.

    python -m qkverify.benchmarks.detection --output reports/detection.json

Each error of `planted_errors` grows by the factor sqrt 2 until it is seen. Three judges look at the same kernels:

    qkverify        the laws that are about it, at profile quick; the kernel declares no precision. One law has to break
    assert_close    `torch.testing.assert_close` with its own tolerances, against the exact result in the dtype
    2 x rule        FlashAttention's: the largest error is at most twice that of PyTorch, op by op in the same dtype

A size counts as seen if it is with each of `SEEDS`. The last two judge one problem: normal numbers, 8 heads of 128 queries and
640 keys. A judge that objects to right code says nothing.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import Phase

from qkverify.benchmarks.planted_errors import BACKWARD, DTYPES, FORWARD, MODELS, Planted
from qkverify.errors import LawViolation
from qkverify.problem.attention_problem import Problem
from qkverify.rounding.formats import FORMATS
from qkverify.verification.checking import Cell, law_book, prepare
from qkverify.verification.laws import PROFILES

Array = np.ndarray
Judge = Callable[[Planted, int], bool]
ERRORS = (*FORWARD, *BACKWARD)
SEEDS = (0, 1)
SMALLEST = 2.0**-10  # in units roundoff
OF_OUTPUT = ("softmax_scale_is_unbiased", "row_sums_are_unbiased", "agrees_with_reference")
OF_GRADIENTS = (
    "gradients_are_unbiased",
    "softmax_scale_of_gradients_is_unbiased",
    "delta_is_unbiased",
    "vjp_agrees_with_reference",
)
LAWS = {law.name: law for law in law_book()}
SIZES = {
    "query": (2, 4, 128, 64),
    "key": (2, 4, 640, 64),
    "value": (2, 4, 640, 64),
    "upstream": (2, 4, 128, 64),
}


def breaks_a_law(planted: Planted, seed: int) -> bool:
    """Whether `qkverify verify` would say so."""
    run = prepare(Cell(planted.implementation(), "cpu", planted.dtype))
    for name in OF_GRADIENTS if planted.error in BACKWARD else OF_OUTPUT:
        try:
            LAWS[name].check(run, max_examples=PROFILES["quick"], seed=seed, phases=(Phase.generate,))
        except LawViolation:
            return True
    return False


def is_not_close(planted: Planted, seed: int) -> bool:
    """Whether `torch.testing.assert_close` objects."""
    problem, got = _results(planted, seed)
    for computed, exact in zip(got, _exact(planted, problem), strict=True):
        dtype = getattr(torch, planted.dtype)
        try:
            torch.testing.assert_close(torch.tensor(computed, dtype=dtype), torch.tensor(exact).to(dtype))
        except AssertionError:
            return True
    return False


def exceeds_twice(planted: Planted, seed: int) -> bool:
    """Whether an error is more than twice the largest of PyTorch's in the same dtype."""
    problem, got = _results(planted, seed)
    exact = _exact(planted, problem)
    usual = [x.astype(np.float64) for x in _in_torch(problem, getattr(torch, planted.dtype))]
    usual = usual[1:] if planted.error in BACKWARD else usual[:1]
    return any(
        np.abs(mine - right).max() > 2 * np.abs(theirs - right).max()
        for mine, theirs, right in zip(got, usual, exact, strict=True)
    )


JUDGES: Mapping[str, Judge] = {
    "qkverify": breaks_a_law,
    "assert_close": is_not_close,
    "2 x rule": exceeds_twice,
}


def _problem(dtype: str, seed: int) -> Problem:
    rng = np.random.default_rng(seed)
    return Problem(
        **{name: rng.standard_normal(sizes).astype(DTYPES[dtype]) for name, sizes in SIZES.items()}
    )  # type: ignore[arg-type]


def _results(planted: Planted, seed: int) -> tuple[Problem, list[Array]]:
    """The problem, and the output or the gradients, in float64."""
    problem = _problem(planted.dtype, seed)
    inputs = problem.query, problem.key, problem.value
    backward = planted.error in BACKWARD
    results = planted.attention_vjp(*inputs, problem.upstream) if backward else [planted.attention(*inputs)]
    return problem, [x.astype(np.float64) for x in results]


def _exact(planted: Planted, problem: Problem) -> list[Array]:
    results = _in_torch(problem, torch.float64)
    return results[1:] if planted.error in BACKWARD else results[:1]


def _in_torch(problem: Problem, dtype: torch.dtype) -> list[Array]:
    """The output and the gradients of query, key and value, op by op in a dtype."""
    arrays = (problem.query, problem.key, problem.value, problem.upstream)
    query, key, value, upstream = (torch.tensor(np.asarray(x, np.float64)).to(dtype) for x in arrays)
    inputs = [x.requires_grad_() for x in (query, key, value)]
    output = torch.softmax(query @ key.mT * query.shape[-1] ** -0.5, -1) @ value
    gradients = torch.autograd.grad(output, inputs, upstream)
    return [x.detach().double().numpy() for x in (output, *gradients)]


@functools.cache
def _objects_to_right_code(judge: Judge, model: tuple[str, str], backward: bool) -> bool:
    right = Planted(*model, (BACKWARD if backward else FORWARD)[0], 0.0)
    return any(judge(right, seed) for seed in SEEDS)


def smallest(judge: Judge, model: tuple[str, str], error: str) -> float | str:
    """The smallest share that is seen, in units roundoff of the dtype, to within a factor of sqrt 2; or a word."""
    dtype, rounding = model
    unit = FORMATS[dtype].unit

    def seen(share: float) -> bool:
        return all(judge(Planted(dtype, rounding, error, share), seed) for seed in SEEDS)

    if _objects_to_right_code(judge, model, error in BACKWARD):
        return "objects to right code"
    if not seen(1.0):
        return "not seen"
    steps = int(np.floor(2 * np.log2(1 / (SMALLEST * unit))))
    unseen, found = -1, steps  # of SMALLEST sqrt(2)^step
    while found - unseen > 1:
        middle = (unseen + found) // 2
        if seen(min(1.0, SMALLEST * unit * 2 ** (middle / 2))):
            found = middle
        else:
            unseen = middle
    return float(SMALLEST * 2 ** (found / 2))


def main() -> None:
    """Measure all, print each line as it is known, and write them."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--output", type=Path, required=True)
    options.add_argument(
        "--model", help="measure this one alone, such as eager; other lines of the file stay"
    )
    arguments = options.parse_args()
    models = [model for model in MODELS if arguments.model in (None, model[1])]
    rows = {}
    if arguments.model and arguments.output.is_file():
        rows = {_place(row): row for row in json.loads(arguments.output.read_text(encoding="utf-8"))}
    for model in models:
        for error in ERRORS:
            found = {name: smallest(judge, model, error) for name, judge in JUDGES.items()}
            row = {"dtype": model[0], "model": model[1], "error": error, **found}
            rows[_place(row)] = row
            print(json.dumps(row), flush=True)
    lines = [rows[place] for place in sorted(rows)]
    arguments.output.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")


def _place(row: Mapping[str, Any]) -> tuple[int, int]:
    return MODELS.index((row["dtype"], row["model"])), ERRORS.index(row["error"])


if __name__ == "__main__":
    main()
