"""flex_attention's compiled entry runs on a GPU alone; that torch can compile what it hands over is tried here, without one.

The back end that stands in for Inductor, `aot_eager`, traces and differentiates as Inductor does and then runs torch's own
operations. That a CPU has no gradients is a check in front of flex_attention, and is taken away for these tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qkverify.contract import describe, registry
from qkverify.problem.attention_problem import Problem
from qkverify.runs.assertions import assert_within_bound
from qkverify.runs.run import Run
from qkverify.verification.checking import law_book

torch = pytest.importorskip("torch", reason="needs torch")
from torch.nn.attention import flex_attention as library  # noqa: E402

from qkverify.implementations import torch_flex  # noqa: E402


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The graphs that torch compiled since."""
    compiled_graphs: list[Any] = []
    backend = torch._dynamo.lookup_backend("aot_eager")

    def noted(graph: Any, inputs: Any) -> Callable[..., Any]:
        compiled_graphs.append(graph)
        return backend(graph, inputs)

    torch._dynamo.reset()
    compiled = torch.compile(torch_flex.flex_attention, dynamic=True, fullgraph=True, backend=noted)
    monkeypatch.setattr(torch_flex, "compiled_once", lambda: compiled)
    monkeypatch.setattr(library, "_validate_device", lambda *_: None)
    return compiled_graphs


def compiled_run(**declared: Any) -> Run:
    implementation = describe(
        torch_flex.attention_by(torch_flex.compiled), name="compiled", arrays="torch", compiles=True,
        requires=("B >= 1", "Q >= 1", "K >= 1"), effort={"cpu": 0.1}, causal_alignment="bottom-right",
        empty_rows="zero", lse="natural", **declared,
    )  # fmt: skip
    return Run(implementation, dtype="float32")


@pytest.mark.parametrize(
    "name", ["agrees_with_reference", "vjp_agrees_with_reference", "log_sum_exp_is_right"]
)
def test_what_is_compiled_keeps_the_law(name: str, graphs: list[Any]) -> None:
    law = next(law for law in law_book() if law.name == name)
    run = compiled_run()
    law.check(run, max_examples=8, seed=3, database=None)
    assert graphs
    assert run.calls


def test_a_bias_that_is_repeated_gets_its_gradient(graphs: list[Any]) -> None:
    rng = np.random.default_rng(0)
    query, key, value, upstream = (rng.standard_normal((2, 2, 3, 4)).astype("float32") for _ in range(4))
    problem = Problem(
        query=query, key=key, value=value, upstream=upstream, bias=np.zeros((1, 1, 3), "float32"),  # a bias for each key
        causal_alignment="bottom-right", empty_rows="zero",
    )  # fmt: skip
    run = compiled_run()
    gradients, exact = run.gradients(problem), run.exact_gradients(problem)
    assert gradients.keys() == {"query", "key", "value", "bias"}
    for name, got in gradients.items():
        assert_within_bound(got, exact[name], what=f"gradient of {name}")
    assert graphs


def test_every_size_is_compiled_however_many_there_are(graphs: list[Any]) -> None:
    attention = torch_flex.attention_by(torch_flex.compiled)
    sizes = range(1, 13)
    assert len(sizes) > 8  # torch's own limit, after which it runs what it was given uncompiled
    for heads in sizes:
        ones = torch.ones(1, heads, 2, 2)
        assert torch.equal(attention(ones, ones, ones), ones)
    assert len(graphs) == len(sizes)


def test_blocks_of_the_same_positions_are_prepared_once() -> None:
    torch_flex.blocks_by_position.cache_clear()
    attention = registry.find("torch_flex-eager")[0].function
    ones = torch.ones(1, 1, 3, 2)
    for _ in range(3):
        attention(ones, ones, ones, causal=True)
        attention(ones, ones, ones)
    assert torch_flex.blocks_by_position.cache_info().misses == 1
