"""No law accuses right code: each holds of the best possible implementation of its operation, in every format.

The bounds are those of one rounding, at the end. A law that rounds its own inputs, or that compares with numbers that were not
rounded, breaks here.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import Phase
from hypothesis.errors import UnsatisfiedAssumption

from qkverify.contract.operations import DESCRIBED
from qkverify.errors import UnsupportedCase
from qkverify.runs.framework_adapter import NUMPY_DTYPES
from qkverify.strategies import exact_changes
from qkverify.verification.checking import Cell, applicable, law_book, prepare

from ..exact_implementations import rounded_once, sources

DTYPES = ("float32", "float16", "bfloat16")
EXAMPLES = 5  # of a law: those of the profile "glance"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*DESCRIBED, "attention with dropout"])
def test_no_law_accuses_results_that_are_rounded_once(name: str, dtype: str) -> None:
    implementation = rounded_once(sources()[name], dtype)
    cell = Cell(implementation, "cpu", dtype, name)
    held = 0
    for law in applicable(law_book(), cell):
        run = prepare(cell)
        if law.unfit(run):
            continue
        try:
            law.check(run, max_examples=EXAMPLES, database=None, phases=(Phase.generate,))
        except UnsupportedCase:
            continue
        held += run.calls > 0
    assert held > 4


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
@pytest.mark.parametrize("constant", [1.0, -7.0, 40.0, 500.0, 1e4, -1e4, 0.125])
def test_what_is_shifted_differs_by_one_number_exactly(dtype: str, constant: float) -> None:
    kind = NUMPY_DTYPES[dtype]
    array = (np.random.default_rng(0).standard_normal(500) * 100).astype(kind)
    back, moved = exact_changes.shifted(array, constant)
    assert back.dtype == moved.dtype == array.dtype
    difference = moved.astype(np.float64) - back.astype(np.float64)
    assert (difference == float(kind(constant))).all()


def test_a_shift_keeps_an_array_that_it_does_not_round() -> None:
    array = np.arange(-8.0, 8.0, dtype=np.float16)
    back, moved = exact_changes.shifted(array, 500.0)
    np.testing.assert_array_equal(back, array)
    np.testing.assert_array_equal(moved, array + np.float16(500))


def test_a_hidden_score_stays_hidden_when_it_is_shifted() -> None:
    back, moved = exact_changes.shifted(np.array([-np.inf, 1.0], np.float32), 8.0)
    assert back.tolist() == [-np.inf, 1.0]
    assert moved.tolist() == [-np.inf, 9.0]


@pytest.mark.filterwarnings("ignore:Using `assume` outside")
def test_products_that_do_not_fit_are_no_example() -> None:
    np.testing.assert_array_equal(exact_changes.scaled(np.array([3.0], np.float16), -4.0), [-12.0])
    for number, factor in ((65504.0, 4.0), (2.0**-24, 0.5)):
        with pytest.raises(UnsatisfiedAssumption):
            exact_changes.scaled(np.array([number], np.float16), factor)
