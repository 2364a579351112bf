"""Score tests: whether a parameter of attention is off by a share that hides in the bound of a single element.

The errors of many results are regressed on the exact result's derivative by the parameter; see `qkverify.runs.score_tests`. A
false alarm has a probability of at most 1e-15 for each test (`qkverify.rounding.score_test.CHANCE`). Nothing is shrunk: fewer
heads would show nothing, and no seed is simpler than another.
"""

from __future__ import annotations

from qkverify.runs import score_problems, score_tests
from qkverify.runs.score_tests import assert_unbiased
from qkverify.verification.laws import law

DTYPES = ("float32", "float16", "bfloat16")  # in float64 the reference errs as much as what it judges
LONG = {"queries": 4, "keys": 640}
FEW = 0.04  # each example is a test of its own that sees nearly all that can be seen


@law("The softmax scale is what it should be: errors of the output do not lean the way that a larger or smaller scale would move it.",
     source="score test (Rao 1948); FlashAttention folds log2 e into the scale", dtypes=DTYPES, when=score_tests.unfit, seed=range(10000), weight=FEW, chance=True)  # fmt: skip
def test_softmax_scale_is_unbiased(run, seed):
    assert_unbiased(run, score_tests.scale_of_output(run, score_problems.two_levels(run, seed)))


@law("The row sums are what they should be, and the output is rounded to nearest: it is neither too large nor too small in the mean; and no keys of a long row have too much or too little weight.",
     source="score test (Rao 1948); approximate reciprocals, and numbers that are cut off", dtypes=DTYPES, when=score_tests.unfit,
     seed=range(10000), weight=FEW, chance=True)  # fmt: skip
def test_row_sums_are_unbiased(run, seed):
    assert_unbiased(run, score_tests.size_of_output(run, score_problems.heads(run, seed)))
    assert_unbiased(run, score_tests.long_rows_of_output(run, score_problems.heads(run, seed, **LONG)))


@law("Gradients are neither too large nor too small in the mean: their scale is right, and they are rounded to nearest.",
     source="score test (Rao 1948); numbers that are cut off", needs="gradients", dtypes=DTYPES, when=score_tests.unfit, seed=range(10000), weight=FEW, chance=True)  # fmt: skip
def test_gradients_are_unbiased(run, seed):
    problems = score_problems.heads(run, seed, upstream=True)
    assert_unbiased(run, score_tests.size_of_gradients(run, problems))


@law("The backward pass has the softmax scale of the forward pass: errors of the value gradient do not lean the way that another scale would move it.",
     source="score test (Rao 1948); weights are computed again from the scores", needs="gradients", dtypes=DTYPES, when=score_tests.unfit,
     seed=range(10000), weight=FEW, chance=True)  # fmt: skip
def test_softmax_scale_of_gradients_is_unbiased(run, seed):
    problems = score_problems.two_levels(run, seed, upstream=True)
    assert_unbiased(run, score_tests.scale_of_gradients(run, problems))


@law("Delta, the row sum of dO O, is what it should be: errors of the query and key gradients do not lean the way that a larger or smaller delta would move them.",
     source="score test (Rao 1948); FlashAttention, appendix B.2", needs="gradients", dtypes=DTYPES, when=score_tests.unfit, seed=range(10000), weight=FEW, chance=True)  # fmt: skip
def test_delta_is_unbiased(run, seed):
    assert_unbiased(run, score_tests.delta_of_gradients(run, score_problems.alike_values(run, seed)))
