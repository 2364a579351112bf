"""What a round's monitor says, with drivers, commands and kernels that are fakes: throttled where it was, and only there."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from qkverify.timing import nvml, scheduling
from qkverify.timing.nvml import GpuMonitor

IDLE, APPLICATION, DISPLAY, POWER, HEAT = 0x1, 0x2, 0x100, 0x4, 0x40


class Driver:
    """The module `pynvml` over one GPU whose state is written into `state`."""

    class NVMLError(Exception):
        pass

    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU = 1, 0
    NVML_PERF_POLICY_POWER, NVML_PERF_POLICY_THERMAL = 0, 1

    def __init__(self, **missing: bool) -> None:
        self.missing, self.asked = missing, list[str]()
        self.reasons, self.lost = IDLE, {0: 0, 1: 0}

    def nvmlInit(self) -> None:  # noqa: N802
        if "driver" in self.missing:
            raise self.NVMLError("driver not loaded")

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        self.asked.append(f"index {index}")
        return "gpu"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        self.asked.append(uuid)
        return "gpu"

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, gpu: str) -> int:  # noqa: N802
        return self.reasons

    def nvmlDeviceGetClockInfo(self, gpu: str, which: int) -> int:  # noqa: N802
        return 1980

    def nvmlDeviceGetTemperature(self, gpu: str, which: int) -> int:  # noqa: N802
        return 41

    def nvmlDeviceGetPowerUsage(self, gpu: str) -> int:  # noqa: N802
        if "power" in self.missing:
            raise self.NVMLError("not supported")
        return 312_500

    def nvmlDeviceGetViolationStatus(self, gpu: str, policy: int) -> Any:  # noqa: N802
        if "violations" in self.missing:
            raise self.NVMLError("not supported")
        return types.SimpleNamespace(violationTime=self.lost[policy])


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    return [0.0]


def monitor_of(driver: Driver, monkeypatch: pytest.MonkeyPatch, seconds: list[float]) -> GpuMonitor:
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    look = nvml.through_nvml()
    assert look is not None
    return GpuMonitor(look, now=lambda: seconds[0])


def test_a_quiet_round_has_facts_and_no_throttling(monkeypatch: Any, seconds: list[float]) -> None:
    driver = Driver()
    monitor = monitor_of(driver, monkeypatch, seconds)
    driver.reasons = IDLE | APPLICATION | DISPLAY
    seconds[0] = 2.5
    reading = monitor.after()
    assert reading == nvml.DeviceReading(2.5, (), mhz=1980, celsius=41, watts=312.5)
    assert driver.asked == ["index 0"]


def test_reasons_at_either_end_of_the_round_count_once_each(monkeypatch: Any, seconds: list[float]) -> None:
    driver = Driver()
    monitor = monitor_of(driver, monkeypatch, seconds)
    driver.reasons = IDLE | POWER
    monitor.before()
    driver.reasons, seconds[0] = HEAT, 1.0
    assert monitor.after().throttled == ("power cap", "hardware thermal slowdown")
    driver.reasons = POWER
    monitor.before()
    seconds[0] = 1.5
    assert monitor.after().throttled == ("power cap",)
    driver.reasons = IDLE
    monitor.before()
    seconds[0] = 2.0
    assert monitor.after().throttled == ()


@pytest.mark.parametrize(("lost_ns", "throttled"), [(9_000_000, ()), (11_000_000, ("thermal slowdown",))])
def test_a_slowdown_within_the_round_is_seen_by_its_counter(
    monkeypatch: Any, seconds: list[float], lost_ns: int, throttled: tuple[str, ...]
) -> None:
    driver = Driver()
    driver.lost = {0: 5_000_000_000, 1: 7_000_000_000}  # of earlier rounds: no matter
    monitor = monitor_of(driver, monkeypatch, seconds)
    driver.lost[1] += lost_ns
    seconds[0] = 1.0
    assert monitor.after().throttled == throttled


def test_every_bit_that_nvidia_calls_throttling_has_a_name() -> None:
    pynvml = pytest.importorskip("pynvml")
    none = (pynvml.nvmlClocksEventReasonGpuIdle, pynvml.nvmlClocksEventReasonApplicationsClocksSetting,
            pynvml.nvmlClocksEventReasonDisplayClockSetting)  # fmt: skip
    assert pynvml.nvmlClocksEventReasonAll == sum(nvml.THROTTLES) + sum(none)
    assert all(hasattr(pynvml, constant) for constant in nvml.COUNTERS)


def test_what_a_device_does_not_tell_is_none(monkeypatch: Any, seconds: list[float]) -> None:
    monitor = monitor_of(Driver(power=True, violations=True), monkeypatch, seconds)
    reading = monitor.after()
    assert (reading.watts, reading.mhz, reading.throttled) == (None, 1980, ())


class Uuid:
    """torch's own type: what it is is known as text alone."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text


@pytest.mark.parametrize("prefix", ["", "GPU-"])
def test_the_gpu_is_the_one_that_torch_computes_on(
    prefix: str, monkeypatch: Any, seconds: list[float]
) -> None:
    cuda = types.SimpleNamespace(
        current_device=lambda: 3,
        get_device_properties=lambda index: types.SimpleNamespace(uuid=Uuid(f"{prefix}abc-{index}")),
    )
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    driver = Driver()
    monitor_of(driver, monkeypatch, seconds)
    assert driver.asked == ["GPU-abc-3"]


SMI = """#!/bin/sh
case "$*" in
  *{unknown}*) echo 'Field is not a valid field to query.'; exit 2 ;;
esac
echo "$*" >> {log}
echo '{answer}'
"""


def smi(folder: Path, monkeypatch: Any, answer: str, unknown: str = "nothing-of-that-kind") -> Path:
    """A command nvidia-smi that gives this answer, and does not know a field."""
    log = folder / "asked"
    (folder / "nvidia-smi").write_text(SMI.format(unknown=unknown, log=log, answer=answer))
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(nvml, "gpu_uuid", lambda: None)
    return log


@pytest.mark.parametrize("unknown", ["nothing-of-that-kind", "clocks_event_reasons"])
def test_without_pynvml_the_drivers_command_is_asked(tmp_path: Path, monkeypatch: Any, unknown: str) -> None:
    log = smi(tmp_path, monkeypatch, "1755, 63, 689.12, 0x0000000000000024", unknown)
    monitor = nvml.monitor_for("cuda")
    assert monitor is not None
    reading = monitor.after()
    assert reading.throttled == ("power cap", "software thermal slowdown")
    assert (reading.mhz, reading.celsius, reading.watts) == (1755, 63, 689.12)
    assert "clocks_throttle_reasons" in log.read_text() or unknown == "nothing-of-that-kind"


def test_a_command_that_tells_little_gives_little(tmp_path: Path, monkeypatch: Any) -> None:
    smi(tmp_path, monkeypatch, "[N/A], 63, [Not Supported], [N/A]")
    monitor = nvml.monitor_for("cuda")
    assert monitor is not None
    reading = monitor.after()
    assert (reading.mhz, reading.celsius, reading.watts, reading.throttled) == (None, 63, None, ())


@pytest.mark.parametrize("driver", [None, Driver(driver=True)], ids=["no pynvml", "no driver"])
def test_without_a_driver_there_is_no_monitor(monkeypatch: Any, driver: Any) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setenv("PATH", "")
    assert nvml.monitor_for("cuda") is None


# The CPU


class Kernel:
    """A folder like /proc, whose counters are set in seconds."""

    def __init__(self, folder: Path, cores: int = 2) -> None:
        self.folder, self.cores = folder, cores
        self.set({"10": 0.0}, stolen=0.0)

    def set(self, waited: dict[str, float], stolen: float = 0.0) -> None:
        for thread, seconds in waited.items():
            (self.folder / "self" / "task" / thread).mkdir(parents=True, exist_ok=True)
            file = self.folder / "self" / "task" / thread / "schedstat"
            file.write_text(f"123456789 {round(seconds * 1e9)} 42\n")
        ticks = round(stolen * os.sysconf("SC_CLK_TCK"))
        lines = [f"cpu  1 2 3 4 5 6 7 {ticks} 0 0", *(f"cpu{i} 1 2 3" for i in range(self.cores)), "intr 5"]
        (self.folder / "stat").write_text("\n".join(lines))


def read(kernel: Kernel, **after: Any) -> tuple[str, ...]:
    """What a monitor says of a round of one second that ends with these counters."""
    time = [0.0]
    monitor = scheduling.CpuMonitor(kernel.folder, now=lambda: time[0])
    kernel.set(**after)
    time[0] = 1.0
    reading = monitor.after()
    assert reading.seconds == 1.0
    return reading.throttled


def sampled(kernel: Kernel, waited: dict[str, float]) -> float:
    """What a monitor says that a sample of one second lost which ends with these counters."""
    monitor = scheduling.CpuMonitor(kernel.folder)
    monitor.begin_sample()
    kernel.set(waited)
    return monitor.share_lost(1.0)


def test_a_thread_that_waited_for_a_core_holds_its_sample_back(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    kernel.set({"10": 5.0, "11": 7.0})
    assert sampled(kernel, {"10": 5.001, "11": 7.009}) == pytest.approx(0.009)
    assert sampled(kernel, {"10": 5.001, "11": 7.039}) == pytest.approx(0.03)
    assert (
        read(kernel, waited={"10": 5.0, "11": 8.0}) == ()
    )  # what other samples of the round waited is theirs


def test_a_thread_that_is_new_counts_from_its_beginning(tmp_path: Path) -> None:
    assert sampled(Kernel(tmp_path), {"10": 0.0, "99": 0.2}) == pytest.approx(0.2)


def test_what_the_hypervisor_took_is_a_mean_over_cores(tmp_path: Path) -> None:
    assert read(Kernel(tmp_path), waited={}, stolen=0.02) == ()  # a hundredth of each of two cores
    assert read(Kernel(tmp_path), waited={}, stolen=0.06) == (nvml.STOLEN,)


def states(folder: Path, *letters: str) -> Path:
    """A kernel whose threads of ours are in these states; names of threads may hold brackets and spaces."""
    for number, letter in enumerate(letters):
        task = folder / "self" / "task" / str(number)
        task.mkdir(parents=True, exist_ok=True)
        (task / "stat").write_text(f"{number} (a ) R (thread) {letter} 1 2 3")
        (task / "schedstat").write_text("0 0 0")
    return folder


def test_threads_that_run_are_counted_by_their_state(tmp_path: Path) -> None:
    assert scheduling.running(states(tmp_path, "R", "S", "R", "D")) == 2
    assert scheduling.running(tmp_path / "none") == 0


def test_a_monitor_waits_until_only_the_caller_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = [0]

    def sleep(seconds: float) -> None:
        waits[0] += 1
        if waits[0] == 3:
            states(tmp_path, "R", "S", "S")

    monkeypatch.setattr(scheduling.time, "sleep", sleep)
    scheduling.CpuMonitor(states(tmp_path, "R", "R", "S")).settle()
    assert waits[0] == 3


def test_a_thread_that_never_rests_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    time = [0.0]

    def sleep(seconds: float) -> None:
        time[0] += seconds

    monkeypatch.setattr(scheduling.time, "sleep", sleep)
    scheduling.CpuMonitor(states(tmp_path, "R", "R"), now=lambda: time[0]).settle()
    assert scheduling.LONGEST_SETTLE_SECONDS <= time[0] < 2 * scheduling.LONGEST_SETTLE_SECONDS


def test_a_kernel_that_does_not_count_gives_no_monitor(tmp_path: Path) -> None:
    assert scheduling.cpu_monitor(tmp_path) is None


@pytest.mark.skipif(not scheduling.waited(scheduling.PROC), reason="this kernel does not count waiting")
def test_the_monitor_of_this_very_processor_reads() -> None:
    monitor = nvml.monitor_for("cpu")
    assert monitor is not None
    reading = monitor.after()
    assert reading.seconds > 0
    assert reading.load is not None
    assert set(reading.throttled) <= {nvml.STOLEN}
    monitor.begin_sample()
    assert monitor.share_lost(1e9) < nvml.DISTURBING_SHARE


@pytest.mark.skipif(not scheduling.waited(scheduling.PROC), reason="this kernel does not count waiting")
def test_a_process_that_shares_its_core_with_itself_is_seen_to_wait() -> None:
    """Two threads that never sleep, held to one core, wait for each other half of the time."""
    import subprocess

    program = (
        "import os, threading, time\n"
        "from qkverify.timing.nvml import monitor_for\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "child = os.fork()\n"
        "while child == 0: pass\n"
        "monitor = monitor_for('cpu')\n"
        "monitor.begin_sample()\n"
        "end = time.perf_counter() + 1.0\n"
        "while time.perf_counter() < end: pass\n"
        "print(monitor.share_lost(1.0) > 0.01)\n"
        "os.kill(child, 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "True\n"


# A GPU, where there is one


@pytest.mark.cuda
def test_the_monitor_of_this_very_gpu_reads() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    monitor = nvml.monitor_for("cuda")
    assert monitor is not None, "neither pynvml nor nvidia-smi tells anything of this GPU"
    operand = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    monitor.before()
    for _ in range(200):
        operand @ operand
    torch.cuda.synchronize()
    reading = monitor.after()
    assert reading.mhz is not None
    assert reading.mhz > 0
    assert set(reading.throttled) <= {*nvml.THROTTLES.values(), *nvml.COUNTERS.values()}
