"""What CI's two pytest workers are given: tests that share a costly fixture go to one of them."""

from __future__ import annotations

import os

import pytest


@pytest.mark.skipif(
    "PYTEST_XDIST_WORKER" not in os.environ,
    reason="of pytest's workers: pytest --numprocesses=2 --dist=loadgroup",
)
@pytest.mark.xdist_group("together")
def test_a_group_of_tests_reaches_one_worker(request: pytest.FixtureRequest) -> None:
    """pytest-xdist tells groups apart by a suffix of the test's id, which a release of pytest may ignore without a word."""
    if not request.config.getoption("loadgroup"):
        pytest.skip("of --dist=loadgroup, which `make test` gives")
    assert request.node.nodeid.endswith("@together")
