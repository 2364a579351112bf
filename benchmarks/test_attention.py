"""Attention, forward and forward+backward: every implementation that runs here, on the device's small grid.

    pytest benchmarks                                            everything
    pytest benchmarks -k "gpt2-small and float32"                some of it
    pytest benchmarks --implementation torch_sdpa --benchmark-json times.json

Implementations of one case are interleaved, and compared with the reference after timing; `extra_info` of the
JSON has TFLOP/s, the share of the measured roofline, bytes, margin and peak memory.
"""

from typing import Any

import pytest

from qkverify.timing.pytest_benchmark import session_of


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("cell", session_of(metafunc.config).parameters())


def test_attention(cell: str, benchmark: Any, request: pytest.FixtureRequest) -> None:
    session = session_of(request.config)
    session.select_from(request.session.items)
    session.enter(benchmark, cell)
