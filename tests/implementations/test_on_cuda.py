"""What only a GPU can show: that the clock measures kernels, the flush empties the cache, and a full memory is survived.

`pytest -m cuda` runs these and the other tests that need one; without a GPU each is skipped and says so.
"""

from __future__ import annotations

from statistics import median
from typing import Any

import pytest

from qkverify.contract import describe, frameworks
from qkverify.timing import ceilings, clocks, measurement, memory
from qkverify.timing.benchmark_cases import BenchmarkCase
from qkverify.timing.workloads import Workload

pytestmark = pytest.mark.cuda
NEAR = 1.05  # what two ways to measure the same may differ by


@pytest.fixture
def torch() -> Any:
    """torch with a GPU."""
    absent = frameworks.missing("torch") or frameworks.get("torch").unavailable("cuda")
    if absent:
        pytest.skip(absent)
    return pytest.importorskip("torch")


def clock(torch: Any, cache: clocks.Cache = "cold") -> clocks.Clock:
    return clocks.clock_for("torch", "cuda", frameworks.get("torch").synchronise, cache)


def best_seconds(torch: Any, call: Any, times: int = 30) -> float:
    """The plain loop with torch's own events: every call between two of them, the best counts."""
    call()
    seconds = []
    for _ in range(times):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3)
    return min(seconds)


def test_long_kernels_take_as_long_by_our_clock_as_by_torchs_events(torch: Any) -> None:
    operand = torch.randn(4096, 4096, device="cuda")
    watch = clock(torch)
    clocks.warm_up(watch, lambda: operand @ operand)
    ours = min(watch.sample(lambda: operand @ operand) for _ in range(30))
    plain = best_seconds(torch, lambda: operand @ operand)
    assert 1 / NEAR <= ours / plain <= NEAR
    assert getattr(watch, "starved", 0) == 0


def test_a_short_kernel_is_measured_without_its_launch(torch: Any) -> None:
    """Python needs microseconds for each of ten launches; the kernels themselves are shorter than that."""
    small = torch.zeros(256, device="cuda")

    def ten() -> None:
        for _ in range(10):
            small.add_(1)

    hidden = min(clock(torch, "hot").sample(ten) for _ in range(30))
    host = clocks.HostClock(lambda result: torch.cuda.synchronize())
    assert hidden < min(host.sample(ten) for _ in range(30))


def test_what_was_flushed_is_read_more_slowly(torch: Any) -> None:
    size = torch.cuda.get_device_properties().L2_cache_size // 4
    numbers = torch.ones(size // 4, device="cuda")

    def seconds(cache: clocks.Cache) -> float:
        watch = clock(torch, cache)
        return median(watch.sample(lambda: numbers.sum(), repeats=5) for _ in range(30))

    assert seconds("cold") > seconds("hot")


def test_a_gpu_becomes_steady(torch: Any) -> None:
    operand = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    assert clocks.warm_up(clock(torch, "hot"), lambda: operand @ operand).steady


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_matmul_ceiling_is_that_of_a_plain_loop(torch: Any, dtype: str) -> None:
    ceiling = ceilings.matmul_ceiling("torch", "cuda", dtype, clock(torch), seconds=3.0)
    rates = []
    for edge in (2048, 4096, 8192):
        operand = torch.randn(edge, edge, device="cuda").to(getattr(torch, dtype))
        rates.append(2 * edge**3 / best_seconds(torch, lambda matrix=operand: torch.mm(matrix, matrix)))
    assert 1 / NEAR <= ceiling.rate / max(rates) <= NEAR


def test_the_copy_ceiling_is_that_of_a_plain_loop(torch: Any) -> None:
    ceiling = ceilings.copy_ceiling("torch", "cuda", clock(torch), seconds=3.0)
    source = torch.ones(ceilings.copy_bytes("cuda") // 4, device="cuda")
    target = torch.empty_like(source)
    plain = 2 * source.nbytes / best_seconds(torch, lambda: target.copy_(source))
    assert 1 / NEAR <= ceiling.rate / plain <= NEAR


def greedy(query: Any, key: Any, value: Any) -> Any:
    """Asks for more memory than any GPU has."""
    import torch

    return query + torch.empty(2**46, device=query.device)[0]


def modest(query: Any, key: Any, value: Any) -> Any:
    import torch

    return torch.softmax(query @ key.mT * query.shape[-1] ** -0.5, dim=-1) @ value


def test_a_cell_that_does_not_fit_is_an_outcome_and_its_memory_is_free_again(torch: Any) -> None:
    case = Workload(name="case", source="these tests", heads=2, queries=256, key_size=64, causal=False)
    declared = {"arrays": "torch", "dtypes": ("float32",), "devices": ("cuda",)}
    group = [
        BenchmarkCase(case, describe(function, name=name, **declared), "cuda", "float32", "forward")  # type: ignore[arg-type]
        for name, function in {"greedy": greedy, "modest": modest}.items()
    ]
    ready = measurement.prepared(group[1])
    ready.call()
    before = torch.cuda.memory_allocated()

    def prepare(cell: BenchmarkCase) -> measurement.Prepared:
        if cell is group[1]:
            return ready
        matrix = torch.randn(1024, 1024, device="cuda")
        return measurement.Prepared(
            lambda: greedy(matrix, matrix, matrix), ready.clock, ready.work, lambda output: 0.0
        )

    large, small = measurement.measure(group, budget_seconds=10.0, prepare=prepare).timings
    assert large.reason.startswith("raised OutOfMemoryError: CUDA out of memory")
    assert small.seconds
    assert torch.cuda.memory_allocated() <= before


def test_peak_memory_is_what_the_allocator_gave_out(torch: Any) -> None:
    case = Workload(name="case", source="these tests", heads=4, queries=2048, key_size=64, causal=False)
    implementation = describe(modest, name="modest", arrays="torch", dtypes=("float32",), devices=("cuda",))
    scores = 4 * 2048 * 2048 * 4
    peak = memory.cuda_peak_bytes(implementation, case, "float32", "forward")
    assert peak is not None
    assert 2 * scores <= peak <= 4 * scores
