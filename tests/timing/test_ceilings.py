"""Ceilings against plain loops, and that no single size or unlucky sample decides them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qkverify.contract import frameworks
from qkverify.timing import ceilings, clocks

NEAR = 1.05  # what the method may cost or gain against a plain loop


class FakeDevice:
    """Seconds of a product by its edge; every second sample is disturbed."""

    name: Any = "host"
    cache: clocks.Cache = "hot"

    def __init__(self, rate: dict[int, float]) -> None:
        self.rate, self.count = rate, 0

    def sample(self, call: Callable[[], Any], repeats: int = 1) -> float:
        edge = call.args[0].shape[0]  # type: ignore[attr-defined]
        self.count += 1
        return 2 * edge**3 / self.rate[edge] * (1 + self.count % 2)

    def resolution_seconds(self) -> float:
        return 1e-9


def test_the_best_size_counts_and_not_the_largest() -> None:
    device = FakeDevice({256: 1e11, 512: 4e11, 1024: 2e11, 2048: 1e9})
    ceiling = ceilings.matmul_ceiling("numpy", "cpu", "float32", device, seconds=2.0)
    assert ceiling.rate == pytest.approx(4e11)
    assert min(ceiling.seconds) == pytest.approx(2 * 512**3 / 4e11)


def test_a_copy_is_larger_than_any_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "cache_bytes", lambda: 2**29)
    assert ceilings.copy_bytes("cpu") == 2**31
    assert ceilings.copy_bytes("cuda") == ceilings.COPY_BYTES["cuda"]
    monkeypatch.setattr(ceilings, "cache_bytes", lambda: None)
    assert ceilings.copy_bytes("cpu") == ceilings.COPY_BYTES["cpu"]


def test_a_gpu_is_warmed_up_before_anything_is_measured_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    array = np.zeros((1, 1), np.float32)
    monkeypatch.setattr(ceilings, "_normal", lambda *facts: array)
    monkeypatch.setattr(ceilings, "warm_up", lambda clock, call: done.append(f"warm {call().shape}"))
    monkeypatch.setattr(ceilings, "copy_ceiling", lambda *facts: done.append("copy"))
    monkeypatch.setattr(ceilings, "matmul_ceiling", lambda *facts: done.append("matmul"))
    clock = FakeDevice({})
    list(ceilings.measure_ceilings([("cuda", "float32")], clock=clock))
    list(ceilings.measure_ceilings([("cpu", "float32")], clock=clock))
    assert done == ["warm (1, 1)", "copy", "matmul", "copy", "matmul"]


def best_seconds(call: Callable[[], Any], seconds: float) -> float:
    """The plain loop: call, look at the watch, keep the best."""
    call()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def agree(ours: Callable[[], float], plain: Callable[[], float]) -> float:
    """Rates measured in pairs, the best of each so far, until they agree: others use this machine too."""
    best_ours = best_plain = 0.0
    for _ in range(10):
        best_ours, best_plain = max(best_ours, ours()), max(best_plain, plain())
        if 1 / NEAR <= best_ours / best_plain <= NEAR:
            break
    return best_ours / best_plain


@pytest.fixture
def one_thread() -> Any:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # two threads on shared cores wait for each other
    yield torch
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_matmul_ceiling_is_that_of_a_plain_loop(dtype: str, one_thread: Any) -> None:
    torch, watch = one_thread, clocks.clock_for("torch", "cpu", frameworks.get("torch").synchronise)

    def plain() -> float:
        rates = []
        for edge in (256, 512, 1024):
            a, b = (torch.randn(edge, edge).to(getattr(torch, dtype)) for _ in range(2))
            rates.append(2 * edge**3 / best_seconds(lambda a=a, b=b: torch.mm(a, b), 0.3))
        return max(rates)

    ratio = agree(lambda: ceilings.matmul_ceiling("torch", "cpu", dtype, watch, 1.0).rate, plain)
    assert 1 / NEAR <= ratio <= NEAR


@pytest.mark.slow
def test_the_copy_ceiling_is_that_of_a_plain_loop(one_thread: Any) -> None:
    torch, watch = one_thread, clocks.clock_for("torch", "cpu", frameworks.get("torch").synchronise)

    def plain() -> float:
        # memory from NumPy, as the inputs of every implementation: it asks for huge pages, torch does not
        size = ceilings.copy_bytes("cpu")
        source, target = (torch.from_numpy(np.ones(size // 4, np.float32)) for _ in range(2))
        return 2 * size / best_seconds(lambda: target.copy_(source), 1.0)

    ratio = agree(lambda: ceilings.copy_ceiling("torch", "cpu", watch, 1.0).rate, plain)
    assert 1 / NEAR <= ratio <= NEAR
