"""Types of layers: how their time grows with each of their sizes, beside theory.

    pytest benchmarks/test_complexity.py                                          everything, half a minute
    pytest benchmarks/test_complexity.py -k "attention-n" --benchmark-json growth.json

A row is the largest size that fitted; `extra_info` of the JSON has the exponent with its interval, theory, and the counted
operations. Each layer is held against its definition first, its operations against the formula, and the chains of products
through it against the orders of the source: with `--benchmark-disable` that is all.
"""

from typing import Any

import pytest

from qkverify.timing.complexity import all_layers, layer, travel
from qkverify.timing.complexity.benchmark_rows import rows_of
from qkverify.verification import pytest_options

REASON = "--implementation chooses functions of attention, and these layers are the benchmark's own"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if pytest_options.value(metafunc.config, "implementation"):
        metafunc.parametrize(metafunc.fixturenames[0], [pytest.param("none", marks=pytest.mark.skip(REASON))])
    elif "row" in metafunc.fixturenames:
        metafunc.parametrize("row", rows_of(metafunc.config).parameters())
    else:
        metafunc.parametrize("name", [layer.name for layer in all_layers()])


def test_growth(row: str, benchmark: Any, request: pytest.FixtureRequest) -> None:
    rows = rows_of(request.config)
    rows.select_from(request.session.items)
    rows.enter(benchmark, row)


def test_signals_travel_as_far_as_theory_says(name: str) -> None:
    known, travelled = layer(name), travel(layer(name))
    sizes = [{**travelled.fixed, "n": n} for n in travelled.lengths]
    assert travelled.steps == [known.steps_at(s) for s in sizes]
    assert travelled.path == ([known.path_at(s) for s in sizes] if known.path else [])
