"""The code for CUDA alone, run where there is no GPU: what is sent there stays on the CPU, and torch.cuda is told what to answer.

This shows that the calls exist in the installed torch, their order and what is made of the answers; `test_on_cuda.py` shows the
rest.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from qkverify.contract import describe
from qkverify.contract.frameworks.views import owner_of
from qkverify.probes import precision
from qkverify.problem.attention_problem import LAYOUTS
from qkverify.runs.framework_adapter import NUMPY_DTYPES
from qkverify.timing import clocks, memory
from qkverify.timing.workloads import Workload

torch = pytest.importorskip("torch", reason="needs torch")
CYCLES_PER_SECOND = 1.98e9
L2_BYTES = 60 * 2**20


class Device:
    """A GPU of one stream. Work takes no time but where it is a delay; memory is what a test says it is."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.asked: list[str] = []
        self.allocated, self.highest = 1000, 5000
        self.L2_cache_size = L2_BYTES

    def sleep(self, cycles: int) -> None:
        assert isinstance(cycles, int)  # torch takes no other
        self.seconds += cycles / CYCLES_PER_SECOND

    def event(self, enable_timing: bool = False) -> Event:
        assert enable_timing
        return Event(self)

    def told(self, name: str, answer: Any = None) -> Any:
        def say(*given: Any) -> Any:
            self.asked.append(name)
            return getattr(self, answer) if answer else None

        return say


class Event:
    def __init__(self, device: Device) -> None:
        self._device = device

    def record(self) -> None:
        self.at = self._device.seconds

    def query(self) -> bool:
        return False

    def elapsed_time(self, end: Event) -> float:
        return (end.at - self.at) * 1e3


class OnCpu(torch.overrides.TorchFunctionMode):  # type: ignore[misc]
    """Whatever is asked for on "cuda" is made on the CPU."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {name: "cpu" if value == "cuda" else value for name, value in (kwargs or {}).items()}
        args = ["cpu" if isinstance(argument, str) and argument == "cuda" else argument for argument in args]
        return function(*args, **kwargs)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    fake = Device()
    for name, answer in {
        "synchronize": fake.told("synchronize"), "_sleep": fake.sleep, "Event": fake.event,
        "get_device_properties": lambda *index: fake, "reset_peak_memory_stats": fake.told("reset"),
        "memory_allocated": fake.told("allocated", "allocated"),
        "max_memory_allocated": fake.told("highest", "highest"),
    }.items():  # fmt: skip
        assert hasattr(torch.cuda, name)
        monkeypatch.setattr(torch.cuda, name, answer)
    with OnCpu():
        yield fake


def test_the_stream_of_a_gpu_holds_flushes_and_measures_in_seconds(device: Device) -> None:
    stream = clocks.CudaStream()
    start = stream.mark()
    stream.hold(0.002)
    end = stream.mark()
    assert stream.seconds_between(start, end) == pytest.approx(0.002, rel=1e-6)
    assert not start.passed()
    stream._buffer.fill_(1)
    stream.flush()
    assert stream._buffer.nbytes == clocks.FLUSH_MULTIPLE * L2_BYTES
    assert not stream._buffer.any()


def test_a_call_is_timed_between_its_own_events(device: Device) -> None:
    watch = clocks.clock_for("torch", "cuda", lambda device: None)
    assert (watch.name, watch.cache) == ("events", "cold")
    assert watch.sample(lambda: device.sleep(1_980_000), repeats=3) == pytest.approx(1e-3, rel=1e-6)


def test_peak_memory_is_counted_from_the_call_on(device: Device) -> None:
    case = Workload(name="case", source="these tests", heads=2, queries=256, key_size=8, causal=False)

    def attention(query: Any, key: Any, value: Any) -> Any:
        device.asked.append(f"call of {query.shape[2]} queries")
        return query

    implementation = describe(
        attention, name="modest", arrays="torch", dtypes=("float32",), devices=("cuda",)
    )
    assert memory.cuda_peak_bytes(implementation, case, "float32", "forward") == 4000
    assert device.asked == [
        "call of 128 queries", "synchronize", "reset", "allocated", "call of 256 queries", "synchronize", "highest",
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "backward"])
def test_an_array_arrives_with_its_strides_and_what_lies_around_it(layout: str, dtype: str) -> None:
    from qkverify.contract.frameworks import torch_arrays

    numbers = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).astype(NUMPY_DTYPES[dtype])
    array = LAYOUTS[layout](numbers)
    sent = torch_arrays._with_strides(array, "cpu")
    assert torch_arrays.to_numpy(sent).tolist() == array.tolist()
    assert [step * array.itemsize for step in sent.stride()] == list(array.strides)
    assert sent.storage_offset() * array.itemsize == _start(array) - _start(owner_of(array))


def _start(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_strides_below_zero_arrive_as_a_copy() -> None:
    from qkverify.contract.frameworks import torch_arrays

    array = LAYOUTS["backward"](np.arange(24.0).reshape(2, 3, 4))
    sent = torch_arrays.from_numpy(array, "cpu")
    assert sent.tolist() == array.tolist()
    assert sent.is_contiguous()


def test_products_are_probed_under_every_setting_that_torch_has(device: Device, monkeypatch: Any) -> None:
    monkeypatch.setattr(precision, "triton_rows", lambda device: iter(()))
    product = precision.torch_product
    monkeypatch.setattr(
        precision, "torch_product", partial(product, least_edge=1)
    )  # a large one takes a CPU long
    settings = [(name, value) for several in precision.SETTINGS["cuda"].values() for name, value in several]
    before = [precision.operator.attrgetter(name)(torch) for name, _ in settings]
    records = list(precision.records("cuda"))
    assert [record.reason for record in records if record.reason] == []
    assert len(records) == 1 + len(settings)  # and float64, which has no setting
    assert [precision.operator.attrgetter(name)(torch) for name, _ in settings] == before


def test_a_product_on_cuda_is_that_of_a_large_one(device: Device, monkeypatch: Any) -> None:
    sizes = []
    real = torch.Tensor.__matmul__
    monkeypatch.setattr(
        torch.Tensor, "__matmul__", lambda a, b: sizes.append((a.shape, b.shape)) or real(a, b)
    )
    a, b = np.arange(6.0).reshape(2, 3), np.arange(12.0).reshape(3, 4)
    got = precision.torch_product(torch.float32, "cuda")(a, b)
    assert got.tolist() == (a @ b).tolist()
    assert sizes == [((1024, 3), (3, 1024))]
