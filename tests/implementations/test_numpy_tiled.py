"""Long calls of numpy_tiled, which the laws' short problems do not make: whole tiles, and threads."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from qkverify.contract import registry
from qkverify.implementations.numpy_tiled import attention, attention_vjp, threads
from qkverify.implementations.numpy_tiled.tiles import KEYS, ROWS
from qkverify.problem.attention_problem import Problem
from qkverify.runs.assertions import assert_within_bound
from qkverify.runs.run import Run

threadpoolctl = pytest.importorskip("threadpoolctl", reason="needs threadpoolctl")


def long_problem(dtype: type, queries: int, keys: int) -> Problem:
    """More blocks and tiles than one of the largest size, none of them whole at its end; two query heads to a key head."""
    rng = np.random.default_rng(0)
    query, key, value, upstream = (
        rng.standard_normal(shape).astype(dtype)
        for shape in ((1, 2, queries, 4), (1, 1, keys, 4), (1, 1, keys, 3), (1, 2, queries, 3))
    )
    return Problem(query=query, key=key, value=value, upstream=upstream)


@pytest.mark.parametrize(
    "options", [{}, {"causal": True}, {"causal": True, "window": (200, None), "softcap": 2.0}], ids=repr
)
def test_whole_tiles_agree_with_the_reference(options: dict) -> None:
    problem = long_problem(np.float32, ROWS.stop + 70, 2 * KEYS.stop + 150).replace(**options)
    run = Run(registry.find("numpy_tiled")[0])
    with run.activated():
        assert_within_bound(run(problem), run.exact(problem))
        exact = run.exact_gradients(problem)
        for name, gradient in run.gradients(problem).items():
            assert_within_bound(gradient, exact[name], what=f"gradient of {name}")


def test_keys_are_seen_by_the_right_queries_in_every_tile() -> None:
    """Queries of zeros give every key the same weight, so that an output is a mean of whole numbers: exact."""
    queries, keys, left = 2 * ROWS.stop + 60, 3 * KEYS.stop + 90, 700
    rng = np.random.default_rng(0)
    query = np.zeros((2, 2, queries, 4))
    key, value = rng.standard_normal((2, 1, keys, 4)), rng.integers(-9, 9, (2, 1, keys, 3)).astype(float)
    mask = rng.random((1, 2, queries, keys)) < 0.5
    mask[..., KEYS.stop : 2 * KEYS.stop] = True
    lengths = np.array([keys - 7, KEYS.stop + 1], np.int32)
    output = attention(query, key, value, mask=mask, causal=True, window=(left, None), key_lengths=lengths)
    behind = np.arange(keys - queries, keys)[:, None] - np.arange(keys)
    seen = (behind >= 0) & (behind <= left) & mask & (np.arange(keys) < lengths[:, None, None, None])
    count = seen.sum(axis=-1, keepdims=True)
    assert (count == 0).any()
    np.testing.assert_array_equal(output, (seen @ value) / np.maximum(count, 1))


def test_tasks_of_a_large_call_run_at_once_and_blas_keeps_its_threads() -> None:
    together = threading.Barrier(2, timeout=30)  # broken, which raises, unless both are there
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        threads.run(lambda task: together.wait(), [1, 2], threads.LARGE)
        assert {
            library["num_threads"]
            for library in threadpoolctl.threadpool_info()
            if library["user_api"] == "blas"
        } == {2}
        with pytest.raises(ZeroDivisionError):
            threads.run(lambda task: 1 // task, [1, 0], threads.LARGE)


@pytest.mark.parametrize(("count", "work"), [(1, threads.LARGE), (2, threads.LARGE - 1)])
def test_one_thread_is_not_left(count: int, work: int) -> None:
    """Where BLAS may have one thread only, and where a call is too short to start any."""
    used: set[int] = set()
    with threadpoolctl.threadpool_limits(count, user_api="blas"):
        threads.run(lambda task: used.add(threading.get_ident()), [1, 2, 3], work)
    assert used == {threading.get_ident()}


def test_without_threadpoolctl_blocks_follow_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    used: set[int] = set()
    monkeypatch.setattr(threads, "blas_libraries", lambda: None)
    threads.run(lambda task: used.add(threading.get_ident()), [1, 2, 3], threads.LARGE)
    assert used == {threading.get_ident()}


def test_threads_change_no_bit() -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((1, 2, 1024, 32), dtype=np.float32) for _ in range(4)]
    assert arrays[0].size * 1024 * 2 >= threads.LARGE
    results = []
    for count in (1, 2):
        with threadpoolctl.threadpool_limits(count, user_api="blas"):
            results.append([attention(*arrays[:3], causal=True), *attention_vjp(*arrays, causal=True)])
    for alone, shared in zip(*results, strict=True):
        np.testing.assert_array_equal(alone, shared)
