"""The gate of a time: kernels that remember, put off, forge or leave out are refused with what was seen; honest ones are not."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qkverify.contract import describe, registry
from qkverify.errors import UnsupportedCase
from qkverify.results import Ceiling, Timing
from qkverify.runs.run import Run
from qkverify.timing import ceilings, clocks, measurement, sampled_rows, sampling
from qkverify.timing.benchmark_cases import BenchmarkCase, why_not_run
from qkverify.timing.clocks import HostClock
from qkverify.timing.fresh_inputs import STRIDE, WINDOWS, Inputs
from qkverify.timing.output_check import remembers
from qkverify.timing.timing_worker import Sweep, Terms
from qkverify.timing.workloads import Workload

LONG = Workload(name="long", source="made up", heads=4, key_size=32, queries=256, causal=False)


def plain(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
    scores = query @ key.swapaxes(-1, -2) * query.dtype.type(query.shape[-1] ** -0.5)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(weights @ value / weights.sum(-1, keepdims=True))


def remembering(mark: Callable[..., Any], least: int = 0) -> Callable[..., np.ndarray]:
    """A kernel that gives its last result for calls of the same mark, from so many queries on."""
    last: dict[Any, np.ndarray] = {}

    def attention(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
        if query.shape[-2] < least:
            return plain(query, key, value)
        marked = mark(query, key, value)
        if marked not in last:
            last.clear()
            last[marked] = plain(query, key, value)
        return last[marked].copy()

    return attention


def by_address(*arrays: np.ndarray) -> Any:
    return tuple(x.ctypes.data for x in arrays)


def by_shape(*arrays: np.ndarray) -> Any:
    return tuple(x.shape for x in arrays)


def by_some_numbers(*arrays: np.ndarray) -> Any:
    return tuple(x.reshape(-1)[:: x.size // 16].tobytes() for x in arrays)


def by_all_numbers(*arrays: np.ndarray) -> Any:
    return tuple(hash(x.tobytes()) for x in arrays)


def cell_of(function: Callable[..., Any], workload: Workload = LONG, **declared: Any) -> BenchmarkCase:
    given = {"name": "mine", "arrays": "numpy", "dtypes": ("float32",), **declared}
    return BenchmarkCase(workload, describe(function, **given), "cpu", "float32", "forward")


def timed(function: Callable[..., Any], workload: Workload = LONG, **declared: Any) -> Timing:
    cell = cell_of(function, workload, **declared)
    return measurement.measure([cell], budget_seconds=30.0, most_rounds=4, seed=1).timings[0]


def reason(function: Callable[..., Any], **declared: Any) -> str:
    timing = timed(function, **declared)
    assert (timing.seconds, timing.verified) == ([], False)
    return timing.reason


def test_an_honest_kernel_has_a_time() -> None:
    timing = timed(plain)
    assert len(timing.seconds) >= 3, timing.reason
    assert timing.margin is not None
    assert timing.margin < 1


@pytest.mark.parametrize(
    ("mark", "said"),
    [
        (by_address, "belongs to the numbers that its arguments held before"),
        (by_shape, "returned the very same for other numbers"),
    ],
)
@pytest.mark.parametrize("least", [0, 200])  # right for all that laws draw, and remembering for what is timed
def test_who_hands_out_an_earlier_result_is_refused(mark: Callable[..., Any], said: str, least: int) -> None:
    why = reason(remembering(mark, least))
    assert said in why or "remembers its last result" in why  # which check sees it first is chance


@pytest.mark.parametrize("mark", [by_some_numbers, by_all_numbers])
@pytest.mark.parametrize("least", [0, 200])
def test_who_is_fast_only_for_numbers_that_it_has_just_had_is_refused(
    mark: Callable[..., Any], least: int
) -> None:
    long = dataclasses.replace(LONG, queries=640)  # a hash of all numbers takes far less than attention does
    assert "remembers its last result" in reason(remembering(mark, least), workload=long)


class Lazy:
    """Looks like an array, and computes when it is read."""

    def __init__(self, *arrays: np.ndarray) -> None:
        self.arrays, self.shape, self.dtype, self.ndim = arrays, arrays[0].shape, arrays[0].dtype, 4

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return plain(*self.arrays)


class Sub(np.ndarray):
    """A subclass, which may do anything when it is read."""


def test_what_is_no_array_of_the_framework_is_refused() -> None:
    def attention(query: Any, key: Any, value: Any) -> Any:
        return Lazy(query, key, value)

    def subclass(query: Any, key: Any, value: Any) -> Any:
        return plain(query, key, value).view(Sub)

    assert "Lazy and no array of numpy" in reason(attention)
    assert "Sub and no array of numpy" in reason(subclass)


def test_a_lazy_tensor_is_refused() -> None:
    torch = pytest.importorskip("torch", reason="torch is optional")

    class Later(torch.Tensor):  # type: ignore[misc, name-defined, unused-ignore]
        pass

    def attention(query: Any, key: Any, value: Any) -> Any:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value).as_subclass(Later)

    assert "Later and no array of torch" in reason(attention, arrays="torch")


def test_another_dtype_or_shape_is_no_such_result() -> None:
    def wider(query: Any, key: Any, value: Any) -> Any:
        return plain(query, key, value).astype(np.float64)

    def shorter(query: Any, key: Any, value: Any) -> Any:
        return plain(query, key, value)[:, :, :-1]

    assert "has dtype float64, expected float32" in reason(wider)
    assert "has shape (1, 4, 255, 32), expected (1, 4, 256, 32)" in reason(shorter)


def test_one_number_that_is_not_finite_is_found_wherever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampled_rows, "SCORES", 1)
    monkeypatch.setattr(sampled_rows, "FEWEST_ROWS", 2)
    sampled_rows.sample_of.cache_clear()
    rows = sampled_rows.sample_of(LONG.problem("float32"), 1).rows
    lost = next(row for row in range(100, 200) if row not in rows)

    def attention(query: Any, key: Any, value: Any) -> Any:
        output = plain(query, key, value)
        output[0, 2, lost, 7] = np.nan
        return output

    assert f"not finite: nan at [0, 2, {lost}, 7], 1 such numbers" in reason(attention)


def test_where_sizes_allow_every_row_is_judged() -> None:
    sampled_rows.sample_of.cache_clear()
    assert sampled_rows.sample_of(LONG.problem("float32"), 3).rows.tolist() == list(range(256))

    def attention(query: Any, key: Any, value: Any) -> Any:
        output = plain(query, key, value)
        output[0, 3, 131] += np.float32(1e-3)
        return output

    assert "times its bound away from the reference" in reason(attention)


def skipping(works: Callable[[int], bool]) -> Callable[..., np.ndarray]:
    """A kernel that computes in some calls of one shape, by their number, and in the others hands out zeros."""
    calls: dict[Any, int] = {}

    def attention(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
        number = calls[query.shape] = calls.get(query.shape, -1) + 1
        return plain(query, key, value) if works(number) else np.zeros_like(query)

    return attention


def test_who_does_no_work_from_the_third_call_of_a_shape_on_is_refused() -> None:
    assert "the very same for other numbers" in reason(skipping(lambda number: number < 2))


def test_who_leaves_out_work_in_the_middle_of_the_timing_is_refused() -> None:
    """The first calls and every last one are right: what is looked at is chosen by chance among those between."""
    ready = measurement.prepared(cell_of(skipping(lambda number: number < 3 or number > 10)))
    assert ready.kept is not None
    outputs = [ready.call() for _ in range(5)]
    ready.kept.keep(outputs[-1])
    for _ in range(10):
        ready.call()
    margin, said = measurement.checked(ready)
    assert margin is not None
    assert margin < 1  # the last one
    assert "one in the middle returned a wrong result" in said


def test_some_samples_of_every_subject_are_looked_at() -> None:
    results = iter(range(1000))
    looked_at: list[int] = []
    subject = sampling.Subject(lambda: next(results), HostClock(), keep=looked_at.append)
    plans = {"one": sampling.SamplingPlan(2, 1e-6)}
    sampling.interleave({"one": subject}, budget_seconds=60.0, plans=plans, most_rounds=20)
    assert len(looked_at) == sampling.KEPT
    assert all(result % 2 for result in looked_at)  # the last call of a sample of two


def test_a_result_that_is_still_written_after_the_return_is_refused() -> None:
    def attention(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
        right, output = plain(query, key, value), np.zeros_like(query)
        threading.Timer(0.02, lambda: np.copyto(output, right)).start()
        return output

    assert "changed after it had returned" in reason(attention)


def test_a_result_in_the_memory_of_its_arguments_is_refused() -> None:
    def attention(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
        query[...] = plain(query, key, value)
        return query[:]

    assert "output lies in the memory of its arguments" in reason(attention)


def test_who_writes_to_its_arguments_is_refused() -> None:
    def attention(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
        output = plain(query, key, value)
        key[0, 0, 0, 0] += 1
        return output

    assert "the timed call wrote to its key" in reason(attention)


@pytest.mark.parametrize("name", ["perf_counter", "process_time"])
def test_who_replaces_a_clock_is_refused_and_its_neighbour_is_timed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, name, getattr(time, name))  # put back whatever happens

    def attention(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
        monkeypatch.setattr(time, name, lambda: clocks.ORIGINALS[name]() / 2)
        return plain(query, key, value)

    cells = [cell_of(attention, name="sets the clock"), cell_of(plain)]
    first, second = measurement.measure(cells, budget_seconds=30.0, most_rounds=4, seed=1).timings
    assert (first.seconds, first.verified) == ([], False)
    assert f"replaced time.{name}" in first.reason
    assert second.seconds, second.reason
    assert getattr(time, name) is clocks.ORIGINALS[name]


def test_a_file_that_replaces_a_clock_when_it_is_loaded_gets_no_time(tmp_path: Path) -> None:
    file = tmp_path / "sets_the_clock.py"
    file.write_text(
        "import time\nimport numpy as np\nfrom qkverify import implementation\n"
        "time.perf_counter = lambda: 0.0\n"
        "@implementation(name='mine', dtypes=('float32',))\n"
        "def attention(query, key, value):\n    return query\n"
    )
    try:
        (implementation,) = registry.find(f"{file}:attention")
    finally:
        clocks.restore_clocks()
    cell = BenchmarkCase(LONG, implementation, "cpu", "float32", "forward")
    with Sweep() as sweep:
        terms = Terms(budget_seconds=2.0, limit_seconds=4.0, seed=0, most_rounds=4)
        measured = sweep.measure([cell], terms, verified={}, peaks={}, expected_seconds={})
    assert "replaced time.perf_counter" in measured.timings[0].reason


def test_nobody_can_know_the_rows_or_the_numbers_that_are_judged() -> None:
    script = (
        "from qkverify.timing import measurement, sampled_rows\n"
        "from qkverify.timing.workloads import Workload\n"
        "long = Workload(name='long', source='made up', heads=8, key_size=8, queries=4096)\n"
        "rows = sampled_rows.sample_of(long.problem('float32'), 1).rows\n"
        "print(measurement.FRESH, rows.tolist())"
    )
    first, second = (
        subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True).stdout
        for _ in range(2)
    )
    assert first.split(" ", 1)[0] != second.split(" ", 1)[0]
    assert first.split(" ", 1)[1] != second.split(" ", 1)[1]


def test_a_suspicion_that_does_not_come_back_is_none() -> None:
    assert remembers([1.0, 1.0], [1.4, 2.0]) == ""
    assert remembers([], [2.0]) == ""
    assert "1.00 s for numbers that it has just had, and 2.00 s for new ones" in remembers(
        [0.5, 1.0], [2.0, 3.0]
    )


# Inputs


def inputs(direction: Any = "forward", arrays: str = "numpy") -> tuple[Inputs, list[tuple[Any, ...]]]:
    received: list[tuple[Any, ...]] = []

    def attention(query: Any, key: Any, value: Any) -> Any:
        received.append(tuple(np.array(x) for x in (query, key, value)))
        return query

    run = Run(describe(attention, name="mine", arrays=arrays, dtypes=("float32",)))
    return Inputs(run, LONG.problem("float32"), direction), received


def test_no_call_sees_numbers_that_an_earlier_one_saw() -> None:
    mine, received = inputs()
    for _ in range(3 * WINDOWS):
        mine.renew(1)
        mine.call()
    for index in range(3):
        assert len({arrays[index].tobytes() for arrays in received}) == 3 * WINDOWS


def test_a_trial_stands_where_the_last_call_was_and_again_repeats_it() -> None:
    addresses = []

    def attention(query: Any, key: Any, value: Any) -> Any:
        addresses.append(query.ctypes.data)
        return query.copy()

    run = Run(describe(attention, name="mine", arrays="numpy", dtypes=("float32",)))
    problem, fresh = LONG.problem("float32"), LONG.problem("float32", seed=1)
    mine = Inputs(run, problem, "forward")
    first, second = mine.call(), mine.call()
    trial = mine.trial(fresh)
    assert np.array_equal(trial.before.query, second)
    assert np.array_equal(trial.call(), fresh.query)
    assert np.array_equal(mine.again(), fresh.query)
    assert addresses[0] + 4 * STRIDE == addresses[1] == addresses[2] == addresses[3]
    assert not np.array_equal(first, second)
    assert np.array_equal(problem.query, LONG.problem("float32").query)  # what the group shares is left alone


@pytest.mark.parametrize("layout", ["BHLD", "BLHD"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_implementation_of_torch_sees_its_own_layout(layout: str, dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is optional")

    def attention(query: Any, key: Any, value: Any) -> Any:
        assert query.shape == ((1, 4, 256, 32) if layout == "BHLD" else (1, 256, 4, 32))
        return query + 0

    run = Run(describe(attention, name="mine", arrays="torch", dtypes=(dtype,), layout=layout), "cpu", dtype)
    fresh = LONG.problem(dtype, seed=2)
    mine = Inputs(run, LONG.problem(dtype), "forward")
    mine.call()
    returned = run.heads_first(mine.trial(fresh).call())
    assert torch.equal(returned, run.framework.from_numpy(fresh.query))


# Gradients of what is too long for the reference


def test_of_long_sequences_only_sampled_rows_get_a_gradient_from_above_and_all_keys_are_judged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch = pytest.importorskip("torch", reason="gradients of a framework need one")
    monkeypatch.setattr(sampled_rows, "HEAD_SCORES", 2**8)
    monkeypatch.setattr(sampled_rows, "SCORES", 2**13)
    monkeypatch.setattr(sampled_rows, "FEWEST_ROWS", 2)

    def sdpa(query: Any, key: Any, value: Any) -> Any:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value)

    run = Run(describe(sdpa, name="sdpa", arrays="torch", dtypes=("float32",)))
    problem = sampled_rows.judged(LONG.problem("float32"), "forward+backward", 5)
    rows = sampled_rows.sample_of(problem, 5).rows
    assert problem.upstream is not None
    assert 2 <= len(rows) < 256
    assert set(np.flatnonzero(problem.upstream.any(axis=(0, 1, 3)))) <= set(rows)
    output, grads = run.callable(problem, "forward+backward")()
    margin = sampled_rows.margin_of(run, problem, (output, grads), "forward+backward", seed=5)
    assert margin is not None
    assert margin < 1
    grads["key"][0, 2, 100, 3] += 1e-3
    wrong = sampled_rows.margin_of(run, problem, (output, grads), "forward+backward", seed=5)
    assert wrong is not None
    assert wrong > 1


# Above what the device can do


def test_a_time_above_the_measured_roofline_is_none() -> None:
    timing = Timing(
        case="c", sizes={}, causal=True, options="", implementation="one", device="cpu", dtype="float32",
        direction="forward", clock="host", seconds=[1e-3] * 3, rounds=[0, 1, 2], flops=10**9, bytes=10**6,
    )  # fmt: skip
    measured = [Ceiling("cpu", "float32", "matmul", 1e11), Ceiling("cpu", "float32", "copy", 1e10)]
    assert "10 times faster than the best product and copy" in ceilings.impossible(timing, 1e-3, measured)
    assert ceilings.impossible(timing, 1.1e-2, measured) == ""
    half = [*measured, Ceiling("cpu", "bfloat16", "matmul", 1e13)]  # a kernel may multiply in another dtype
    assert ceilings.impossible(timing, 1e-3, half) == ""
    assert ceilings.impossible(timing, 1e-3, []) == ""


# In the name of the measuring process

FORGER = """
import json, os, sys
import numpy as np
from qkverify import implementation

@implementation(name="forges", dtypes=("float32",))
def attention(query, key, value):
    frame = sys._getframe()
    while frame is not None and frame.f_code.co_name != "answer":
        frame = frame.f_back
    if frame is not None:
        asked = frame.f_locals["question_asked"]
        timings = [dict(type="timing", case=c.workload.name, sizes={}, causal=False, options="", implementation=c.name,
                        device="cpu", dtype="float32", direction="forward", clock="host", seconds=[SECONDS] * 5,
                        rounds=[0, 1, 2, 3, 4], flops=1, bytes=1, margin=0.1, verified=True) for c in asked.cells]
        text = json.dumps(dict(timings=timings, call_seconds=[1e-6] * len(timings), wall_seconds=1.0)).encode() + b"\\n"
        for descriptor in range(3, 12):
            try:
                if os.readlink(f"/proc/self/fd/{descriptor}").startswith("pipe"):
                    os.write(descriptor, text)
            except OSError:
                pass
        if ENDS:
            os._exit(0)
    return query
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="the forger finds its pipe in /proc")
@pytest.mark.parametrize(
    ("seconds", "ends", "said"),
    [("1e-6", True, "which is not believed"), ("1e3", False, "answered more than once")],
)
def test_an_answer_in_the_name_of_the_measuring_process_is_not_believed(
    tmp_path: Path, seconds: str, ends: bool, said: str
) -> None:
    file = tmp_path / "forger.py"
    file.write_text(FORGER.replace("SECONDS", seconds).replace("ENDS", str(ends)))
    (implementation,) = registry.find(f"{file}:attention")
    terms = Terms(budget_seconds=2.0, limit_seconds=4.0, seed=0, most_rounds=4)
    with Sweep() as sweep:
        measured = sweep.measure(
            [BenchmarkCase(LONG, implementation, "cpu", "float32", "forward")],
            terms,
            verified={},
            peaks={},
            expected_seconds={},
        )
    assert measured.timings[0].seconds == []
    assert said in measured.timings[0].reason


# What stands in this repository


@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_implementation_here_is_refused(dtype: str, direction: Any) -> None:
    workload = Workload(name="short", source="made up", heads=4, kv_heads=2, key_size=32, queries=64)
    every = [
        implementation for implementation in registry.load_folder() if implementation.operation == "attention"
    ]
    cells = [
        BenchmarkCase(workload, implementation, "cpu", dtype, direction)
        for implementation in every
        if dtype in implementation.dtypes and "cpu" in implementation.devices
    ]
    cells = [cell for cell in cells if why_not_run(cell) is None]
    assert cells
    for cell in cells:
        ready = measurement.prepared(cell, seed=3)
        try:
            seconds = [ready.clock.sample(ready.call) for _ in range(4)]
        except UnsupportedCase:
            continue
        assert ready.kept is not None
        for _ in range(sampling.KEPT):
            ready.renew(1)
            ready.kept.keep(ready.call())
        margin, said = measurement.checked(ready, seconds[1:])
        accumulates = (cell.implementation.name, dtype, direction) == (
            "torch_sdpa-flash",
            "bfloat16",
            "forward+backward",
        )
        assert said == "" or accumulates, f"{cell.id}: {said}"
        assert margin is None or margin <= 1 or accumulates
