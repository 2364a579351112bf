"""What is poured into hidden keys and values overflows in no product that right code makes of it."""

import numpy as np
import pytest

from qkverify.contract import describe
from qkverify.problem.attention_problem import Problem
from qkverify.runs.hidden_value_corruption import poisoned, poisons
from qkverify.runs.run import Run

LARGEST = 65504.0  # of float16


def a_run(**declared):
    implementation = describe(
        lambda query, key, value, mask=None: query, arrays="torch", dtypes=("float16",), **declared
    )
    return Run(implementation, "cpu", "float16", {"masked_values": "read"})


@pytest.mark.parametrize("times", [1.0, 8.0, 1000.0])
def test_finite_poison_overflows_nowhere(times):
    pytest.importorskip("torch", reason="half precision is torch's")
    run, rows = a_run(), np.full((1, 1, 1, 2), times, np.float16)
    keys = np.zeros((1, 1, 2, 2), np.float16)
    mask = np.array([False, True]).reshape(1, 1, 1, 2)
    problem = Problem(query=rows, key=keys, value=keys, upstream=rows, mask=mask)
    hidden = np.array([True, False]).reshape(1, 1, 2)
    for which in range(len(poisons(run))):
        changed = poisoned(run, problem, hidden, which)
        for array in (changed.key, changed.value):
            assert abs(float(array[0, 0, 0, 0])) > 0
            product = rows.astype(np.float64) @ array.astype(np.float64).swapaxes(-1, -2)
            assert np.abs(product).max() < LARGEST
