"""Where a run takes place, in two parts: what decides comparability, and what is only recorded.

Identity (processor, GPU, memory, driver, libraries, threads, commit) says with which other runs a result may
be compared; state (load, clocks, temperature) explains a bad day. A fact that this machine or this
installation cannot give is None, never a guess: psutil and threadpoolctl are optional, clocks and
temperatures are hidden from most virtual machines. No array framework is imported for this: versions come
from package metadata, CUDA facts from torch where it is loaded already, GPU facts from the driver's own
nvidia-smi.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from qkverify.results import Fact, Fingerprint

COMMAND_SECONDS = 10  # a driver that hangs must not hang the run
MACHINE = ("cpu", "cores", "memory_gib", "gpu", "gpu_memory_mib")  # of an identity; the rest is software
MEMORY = ("memory_gib", "gpu_memory_mib")
EXTRAS = ("torch", "triton", "jax")  # optional: without one nothing of it was timed
RESERVED = 0.05  # firmware and kernel keep a few per cent of the memory for themselves, and other versions keep another part
PACKAGES = ("numpy", "torch", "triton", "jax", "ml_dtypes", "hypothesis")


def alike(name: str, first: Fact, second: Fact) -> bool:
    """Whether two facts of a machine are those of one machine, and two facts of software those of one installation."""
    if name in EXTRAS and None in (first, second):  # one of the environments merely lacks it
        return True
    if name in MEMORY and isinstance(first, int | float) and isinstance(second, int | float):
        return abs(first - second) <= RESERVED * max(first, second)
    return _parts(first) == _parts(second)


def _parts(fact: Fact) -> list[str]:
    """A fact that lists several (threads of each library) is the same in any order."""
    return sorted(str(fact).split(", "))


def fingerprint() -> Fingerprint:
    """This machine, installation and checkout, now."""
    return Fingerprint(identity=identity(), state=state())


def identity() -> dict[str, Fact]:
    """Facts by which results may be compared."""
    return {
        "cpu": cpu_model(),
        "cores": cores(),
        "memory_gib": memory_gib(),
        "gpu": _gpu("name"),
        "gpu_memory_mib": _number(_gpu("memory.total")),
        "driver": _gpu("driver_version"),
        "cuda": _torch(lambda torch: torch.version.cuda),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "blas": numpy_blas(),
        "blas_threads": _blas_threads(),
        "torch_threads": _torch(lambda torch: torch.get_num_threads()),
        **checkout(),
    }


def state() -> dict[str, Fact]:
    """Facts of the moment: load averages, clocks in MHz, temperatures in degrees Celsius."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "load_1_minute": None if load is None else round(load, 2),
        "cpu_mhz": _psutil(lambda psutil: round(psutil.cpu_freq().current)),
        "cpu_celsius": _psutil(_hottest),
        "memory_available_gib": _psutil(lambda psutil: round(psutil.virtual_memory().available / 2**30, 1)),
        "gpu_mhz": _number(_gpu("clocks.sm")),
        "gpu_celsius": _number(_gpu("temperature.gpu")),
        "gpu_watts": _number(_gpu("power.draw")),
        "gpu_throttle_reasons": _gpu("clocks_event_reasons.active"),
    }


def device_slug(device: str = "cpu") -> str:
    """A readable folder name for the processor or GPU: "intel-xeon-platinum-8481c-2-cores", "nvidia-h200"."""
    if device == "cuda":
        name = _gpu("name") or _torch(lambda torch: torch.cuda.get_device_name())
        return slug(str(name or "cuda"))
    return slug(f"{cpu_name(cpu_model())} {cores()} {'core' if cores() == 1 else 'cores'}")


def slug(text: str) -> str:
    """Lower case letters, digits and dots, joined by single hyphens."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "unknown"


def cpu_name(model: str) -> str:
    """A model string without what vendors decorate it with; the frequency stays where it is all there is.

    "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz" is "Intel Xeon Platinum 8481C".
    """
    name, _, frequency = model.partition("@")
    name = re.sub(r"\((R|TM|C)\)", " ", name, flags=re.IGNORECASE)
    name = re.sub(r"\b(\d+-core|cpu|processor)\b", " ", name, flags=re.IGNORECASE)
    return " ".join(name.split() + ([] if re.search(r"\d", name) else frequency.split()))


def cpu_model() -> str:
    """The processor's own name for itself."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor() or platform.machine()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_gib() -> Fact:
    """Memory of the machine in GiB, to a tenth."""
    if hasattr(os, "sysconf") and {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= os.sysconf_names.keys():
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    return _psutil(lambda psutil: round(psutil.virtual_memory().total / 2**30, 1))


def numpy_blas() -> Fact:
    """The BLAS that NumPy was built with, name and version."""
    config: Any = import_module("numpy").show_config(mode="dicts")
    blas = config.get("Build Dependencies", {}).get("blas", {})
    return " ".join(str(blas[key]) for key in ("name", "version") if blas.get(key)) or None


def checkout() -> dict[str, Fact]:
    """The commit that this package runs from, and whether files differ from it: None outside of a checkout.

    Reports do not count as a difference: a run writes them itself.
    """
    root = Path(__file__).resolve().parents[3]
    commit = _output("git", "-C", str(root), "rev-parse", "HEAD") if (root / ".git").exists() else None
    if commit is None:
        return {"commit": None, "dirty": None}
    changed = _output("git", "-C", str(root), "status", "--porcelain", "--", ".", ":(exclude)reports")
    return {"commit": commit, "dirty": None if changed is None else "yes" if changed else "no"}


def _hottest(psutil: Any) -> float:
    return max(
        float(reading.current) for readings in psutil.sensors_temperatures().values() for reading in readings
    )


def _blas_threads() -> Fact:
    """Threads of each BLAS and OpenMP library in this process."""
    try:
        libraries: list[dict[str, Any]] = import_module("threadpoolctl").threadpool_info()
    except ImportError:
        return os.environ.get("OMP_NUM_THREADS")
    return ", ".join(sorted(f"{lib['internal_api']} {lib['num_threads']}" for lib in libraries)) or None


def _psutil(read: Callable[[Any], Fact]) -> Fact:
    """What psutil can say, None where it is not installed or this machine does not tell."""
    try:
        return read(import_module("psutil"))
    except (ImportError, AttributeError, NotImplementedError, OSError, ValueError):
        return None


def _torch(read: Callable[[Any], Fact]) -> Fact:
    torch = sys.modules.get("torch")
    try:
        return None if torch is None else read(torch)
    except (RuntimeError, AssertionError):  # a build without CUDA
        return None


def _version(package: str) -> Fact:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _gpu(field: str) -> str | None:
    """One field of the first GPU that the driver knows, None where there is no driver or it does not tell."""
    answer = _output("nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits")
    first = (answer or "").partition("\n")[0].strip()
    return None if not first or first.startswith(("[", "N/A")) else first


def _number(text: str | None) -> Fact:
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def _output(*command: str) -> str | None:
    """What a command prints, stripped, None where it is not there, fails or hangs."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
