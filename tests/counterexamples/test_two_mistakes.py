"""Two mistakes at once are named together, each in a block of its own; a single one is never called two."""

import numpy as np
import pytest

from qkverify.contract import describe
from qkverify.counterexamples.causes import causes
from qkverify.verification.checking import Cell, checked, laws_named, prepare

from ..verification.sentences import contradicting


def core(q, k, v, scale=None, window=None, softcap=None, *, short=0, capped=True, zero=False):
    """Plain attention in NumPy; `short` shortens the window on the left, `zero` takes a scale of 0 for none."""
    if q.shape[1] != k.shape[1] or q.shape[::3] != k.shape[::3] or k.shape[:3] != v.shape[:3]:
        raise ValueError("sizes that do not fit one another")
    default = q.shape[-1] ** -0.5
    scale = (scale or default) if zero else default if scale is None else scale
    s = q @ np.swapaxes(k, -1, -2) * q.dtype.type(scale)
    if softcap is not None and capped:
        cap = q.dtype.type(softcap)
        s = cap * np.tanh(s / cap) if np.isfinite(cap) else s
    ahead = np.arange(k.shape[2]) - np.arange(q.shape[2])[:, None] - (k.shape[2] - q.shape[2])
    left, right = (None, None) if window is None else window
    visible = np.ones(ahead.shape, bool)
    visible &= left is None or ahead >= -left + short
    visible &= right is None or ahead <= right
    s = np.where(visible, s, -np.inf)
    peak = s.max(-1, keepdims=True, initial=-np.inf)
    w = np.exp(s - np.where(np.isfinite(peak), peak, 0))
    total = w.sum(-1, keepdims=True)
    return (w / np.where(total == 0, 1, total)) @ v


def two(q, k, v, *, window=None, softcap=None):
    return core(q, k, v, None, window, softcap, short=1, capped=False)


def one(q, k, v, *, window=None, softcap=None):
    return core(q, k, v, None, window, softcap, capped=False)


def zero_is_none(q, k, v, *, scale=None):
    return core(q, k, v, scale, zero=True)


LAWS = ("agrees_with_reference", "infinite_cap_is_none", "window_edges_are_exact", "zero_scale_averages")
WINDOW = "attention whose window is one key short on the left"
SOFTCAP = "attention without the softcap"
TOGETHER = "Two mistakes at once explain what is wrong: {} (shown here), and {}."


def cell_of(function):
    implementation = describe(function, arrays="numpy", dtypes=("float32",), requires=("G == H",), empty_rows="zero",
                              causal_alignment="bottom-right")  # fmt: skip
    return Cell(implementation, "cpu", "float32")


@pytest.mark.parametrize(
    ("function", "sentences"),
    [
        (two, {TOGETHER.format(SOFTCAP, WINDOW), TOGETHER.format(WINDOW, SOFTCAP)}),
        (one, {f"The result equals {SOFTCAP}."}),
        (
            zero_is_none,
            {"The result equals attention that takes a scale of 0 for none, and the default instead."},
        ),
    ],
)
def test_each_mistake_is_a_block_with_its_sentence(function, sentences, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    groups = causes(checked(cell_of(function), laws_named(LAWS), examples=25))
    assert {cause.first.counterexample.diagnosis for cause in groups} == sentences
    assert len(groups) == len(sentences)


def test_no_fresh_problem_contradicts_the_sentence_of_two_mistakes(monkeypatch, tmp_path):
    from qkverify.counterexamples.failures import Failures
    from qkverify.verification.checking import check

    monkeypatch.chdir(tmp_path)
    cell, failures = cell_of(two), Failures()
    for law in laws_named(LAWS[:3]):
        check(law, prepare(cell), failures=failures, max_examples=25, seed=1, database=None)
    claims = [failure.claim for failure in failures.of.values() if failure.claim is not None]
    assert claims
    for claim in claims:
        against, tried = contradicting(prepare(cell), claim)
        assert tried
        assert not against
