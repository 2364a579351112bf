"""A counterexample of another operation shows the numbers of its call, not the seed that they were made from."""

from __future__ import annotations

from typing import Any

import numpy as np

from qkverify.contract import describe
from qkverify.counterexamples.call_in_words import call_in_words
from qkverify.verification.checking import Cell, check_cell, prepare


def embedding(tokens: Any, table: Any) -> Any:
    """Without the factor of sqrt(d)."""
    return table[tokens]


def cell() -> Cell:
    one = describe(embedding, operation="embedding", arrays="numpy", dtypes=("float32",))
    return Cell(one, "cpu", "float32")


def test_a_broken_law_of_an_embedding_shows_tokens_and_table() -> None:
    broken = [v for v in check_cell(cell(), examples=5) if v.outcome == "failed" and v.family == "embedding"]
    assert broken
    for verdict in broken:
        assert verdict.counterexample
        message = verdict.counterexample.message
        assert "smallest call      embedding(tokens, table)" in message
        assert "    tokens [[" in message
        assert "    table [[" in message
        assert "seed " not in message


def test_a_large_array_shows_its_first_numbers_and_a_mapping_its_entries() -> None:
    run = prepare(cell())
    run.requests = [((np.arange(3), np.arange(200.0)), {"weights": {"w_1": np.ones((1, 2))}, "heads": 2})]
    lines = call_in_words(run)
    assert lines[0] == "embedding(tokens, table, weights, heads)"
    assert lines[1] == "tokens [0, 1, 2]"
    assert "the first [0, 1, 2, 3, 4, 5, 6, 7]" in lines[2]
    assert lines[3:] == ["weights['w_1'] [[1, 1]]", "heads 2"]


def test_without_a_call_there_is_nothing_to_show() -> None:
    assert call_in_words(prepare(cell())) == []
