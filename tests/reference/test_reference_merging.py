"""reference.merged_attention against attention to all keys at once."""

from __future__ import annotations

import numpy as np
import pytest

from qkverify import reference

SPLITS = (0, 1, 3, 5)


@pytest.mark.parametrize("split", SPLITS)
def test_two_parts_of_the_keys_merge_to_attention_to_all(split: int) -> None:
    rng = np.random.default_rng(split)
    query, key, value = (5 * rng.standard_normal((2, 3, n, 4)) for n in (6, 5, 5))
    whole = reference.attention(query, key, value, return_lse=True)
    parts = [
        reference.attention(query, key[:, :, at], value[:, :, at], return_lse=True)
        for at in (slice(0, split), slice(split, None))
    ]
    for got, exact in zip(reference.merged_attention(*parts[0], *parts[1]), whole, strict=True):
        np.testing.assert_allclose(got, exact, rtol=1e-13, atol=1e-13)


def test_nothing_and_nothing_are_nothing() -> None:
    none, nowhere = np.zeros((2, 3)), np.full(2, -np.inf)
    output, lse = reference.merged_attention(none, nowhere, none, nowhere)
    assert (output == 0).all()
    assert (lse == -np.inf).all()
