"""Long calls of torch_tiled, which the laws' short problems do not make: whole tiles, and heads that are not computed at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qkverify.contract import registry
from qkverify.problem.attention_problem import Problem
from qkverify.runs.assertions import assert_within_bound
from qkverify.runs.run import Run

torch = pytest.importorskip("torch", reason="needs torch")

from qkverify.implementations.torch_tiled import attention, tiles  # noqa: E402


def problem(queries: int, keys: int, B: int = 1, G: int = 1, **options: Any) -> Problem:
    """Two query heads to a key head."""
    rng = np.random.default_rng(0)
    query, key, value, upstream = (
        rng.standard_normal(shape).astype(np.float32)
        for shape in ((B, 2 * G, queries, 4), (B, G, keys, 4), (B, G, keys, 3), (B, 2 * G, queries, 3))
    )
    return Problem(query=query, key=key, value=value, upstream=upstream).replace(**options)


def assert_right(long: Problem) -> None:
    with Run(registry.find("torch_tiled")[0]).activated() as run:
        assert_within_bound(run(long), run.exact(long))
        exact = run.exact_gradients(long)
        for name, gradient in run.gradients(long).items():
            assert_within_bound(gradient, exact[name], what=f"gradient of {name}")


@pytest.mark.parametrize("options", [{}, {"causal": True, "window": (200, None), "softcap": 2.0}], ids=repr)
def test_whole_tiles_agree_with_the_reference(options: dict[str, Any]) -> None:
    assert_right(problem(tiles.ROWS.stop + 70, 2 * tiles.KEYS.stop + 50, **options))


@pytest.mark.parametrize("heads", [1, 2])
def test_heads_that_are_computed_one_after_another_agree(heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where all at once would be many scores: the last group of heads is smaller."""
    monkeypatch.setitem(tiles.SCORES, "cpu", heads * 2 * tiles.ROWS.start * tiles.KEYS.start)
    mask = np.random.default_rng(1).random((2, 1, 40, 33)) < 0.7
    lengths = np.array([33, 20], np.int32)
    assert_right(problem(40, 33, B=2, G=3, causal=True, mask=mask, key_lengths=lengths))


def test_keys_are_seen_by_the_right_queries_in_every_tile() -> None:
    """Queries of zeros give every key the same weight, so that an output is a mean of whole numbers: exact."""
    queries, keys, left = 2 * tiles.ROWS.stop + 60, 4 * tiles.KEYS.stop + 90, 600
    rng = np.random.default_rng(0)
    key, value = rng.standard_normal((2, 1, keys, 4)), rng.integers(-9, 9, (2, 1, keys, 3)).astype(float)
    mask = rng.random((1, 2, queries, keys)) < 0.5
    mask[..., tiles.KEYS.stop : 2 * tiles.KEYS.stop] = True
    lengths = np.array([keys - 7, 2 * tiles.KEYS.stop + 1], np.int32)
    tensors = (torch.from_numpy(x) for x in (np.zeros((2, 2, queries, 4)), key, value))
    output = attention(
        *tensors,
        mask=torch.from_numpy(mask),
        causal=True,
        window=(left, None),
        key_lengths=torch.from_numpy(lengths),
    )
    behind = np.arange(keys - queries, keys)[:, None] - np.arange(keys)
    seen = (behind >= 0) & (behind <= left) & mask & (np.arange(keys) < lengths[:, None, None, None])
    count = seen.sum(axis=-1, keepdims=True)
    assert (count == 0).any()
    np.testing.assert_array_equal(output.numpy(), (seen @ value) / np.maximum(count, 1))
