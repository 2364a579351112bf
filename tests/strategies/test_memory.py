"""Memory as frameworks have it: storage offsets, axes that run backward, arrays that each lie in their own way."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from qkverify.contract.frameworks import torch_arrays
from qkverify.counterexamples.scripts.dialects import layout_lines
from qkverify.problem.attention_problem import LAYOUTS
from qkverify.problem.byte_strategies import sampled
from qkverify.strategies.attention_problems import STRIDED, problems
from qkverify.verification.checking import check, law_book, prepare
from qkverify.verification.mutation_testing import cell_of, planted

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "int32": np.int32, "bool": np.bool_}
LAWS = {law.name: law for law in law_book()}


@pytest.mark.parametrize("layout", ["contiguous", *STRIDED])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_holds_the_numbers_of_every_layout(layout: str, dtype: str) -> None:
    numbers = (np.arange(120).reshape(2, 3, 4, 5) % 100).astype(DTYPES[dtype])
    tensor = torch_arrays.from_numpy(LAYOUTS[layout](numbers))
    assert np.array_equal(torch_arrays.to_numpy(tensor), numbers)
    assert (tensor.storage_offset() > 0) == (layout in ("offset", "slice of longer"))


def test_a_tensor_inside_of_a_buffer_shares_its_memory() -> None:
    buffer = np.zeros(8, np.float32)
    tensor = torch_arrays.from_numpy(buffer[2:6].reshape(2, 2))
    tensor[0, 1] = 5.0
    assert buffer.tolist() == [0, 0, 0, 5, 0, 0, 0, 0]
    assert tensor.untyped_storage().nbytes() == buffer.nbytes


def test_query_key_and_value_may_each_lie_in_their_own_way() -> None:
    generator, strategy = np.random.default_rng(0), problems()
    drawn = [sampled(strategy, generator) for _ in range(100)]
    apart = [
        p
        for p in drawn
        if p is not None and len({p.layouts.get(name) for name in ("query", "key", "value")}) == 3
    ]
    assert apart
    for problem in apart:
        assert set(problem.layouts) >= {"query", "key", "value"}


@pytest.mark.parametrize(
    ("bug", "law", "layouts"),
    [
        ("A053", "layout_invariance", ("backward",)),
        ("A054", "layout_invariance", ("offset", "slice of longer")),
        ("A055", "overlapping_rows", ("overlapping rows",)),
    ],
)
def test_a_law_sees_memory_that_is_misread(bug, law, layouts, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    (mutant,) = [implementation for implementation in planted() if f"-{bug}-" in implementation.name]
    verdict = check(LAWS[law], prepare(cell_of(mutant)), max_examples=100, seed=1, database=None)
    assert verdict.outcome == "failed"
    assert any(layout in verdict.counterexample.message for layout in layouts)


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_a_script_makes_rows_that_overlap(framework) -> None:  # type: ignore[no-untyped-def]
    """What a counterexample's script does has the strides, and the numbers, of the layout."""
    windows = np.lib.stride_tricks.sliding_window_view(np.arange(6.0), 3)
    x = np.array(windows) if framework == "numpy" else torch.from_numpy(np.array(windows))
    made: dict[str, object] = {"np": np, "torch": torch}
    exec("\n".join(["def laid(x):", *layout_lines("overlapping rows", framework)]), made)
    laid = made["laid"](x)  # type: ignore[operator]
    assert np.array_equal(laid, windows)
    strides = [stride // x.itemsize for stride in laid.strides] if framework == "numpy" else [*laid.stride()]
    assert strides == [1, 1]
