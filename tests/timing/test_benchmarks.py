"""`pytest benchmarks`: pytest-benchmark's own options work, and show the engine's samples."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qkverify.timing import pytest_benchmark
from qkverify.timing.pytest_benchmark import Replay

TARGET = """
import numpy as np
from qkverify import implementation

def scores(query, key, causal):
    s = query @ key.swapaxes(-1, -2) * query.dtype.type(query.shape[-1] ** -0.5)
    return np.where(np.tri(*s.shape[-2:], dtype=bool), s, query.dtype.type(-1e30)) if causal else s

@implementation(name="right", dtypes=("float32",), causal_alignment="bottom-right", requires="G == H")
def attention(query, key, value, *, causal=False):
    weights = np.exp((s := scores(query, key, causal)) - s.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ value

@implementation(name="wrong", dtypes=("float32",), causal_alignment="bottom-right", requires="G == H")
def wrong(query, key, value, *, causal=False):
    return attention(query, key, value, causal=causal) * np.float32(1.001)
"""


def run_pytest(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "kernels.py").write_text(TARGET)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-rs",
        "--pyargs",
        "qkverify.benchmarks",
    ]
    return subprocess.run(
        [*command, "--implementation", "kernels.py", *arguments],
        cwd=tmp_path,
        env={**{k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def test_times_enter_the_table_with_what_they_mean(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, "-k", "base-256-forward-right", "--benchmark-json", "times.json")
    assert done.returncode == 0, done.stdout + done.stderr
    written: dict[str, Any] = json.loads((tmp_path / "times.json").read_text())
    (entry,) = written["benchmarks"]
    info = entry["extra_info"]
    assert entry["name"] == "test_attention[transformer-base-256-forward-right-cpu-float32]"
    assert entry["group"] == "transformer-base-256 forward cpu float32"
    assert entry["stats"]["rounds"] == len(info["rounds"]) >= 3
    assert 0 < info["margin"] < 1
    assert info["tflop_per_second"] == pytest.approx(info["flops"] / entry["stats"]["median"] / 1e12)
    assert info["peak_bytes"] > 8 * 256 * 256 * 4
    assert len(info["control"]) == 3


def test_a_wrong_kernel_fails_and_an_untimed_cell_is_skipped_with_its_reason(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, "-k", "base-256 and wrong")
    assert done.returncode == 1
    assert "the timed call's output is wrong" in done.stdout
    assert "not offered: gradients" in done.stdout


def test_without_timing_every_cell_is_still_called_and_checked(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, "-k", "base-256-forward-", "--benchmark-disable")
    assert "1 failed, 1 passed" in done.stdout
    assert "times its bound away" in done.stdout


def test_an_unknown_implementation_is_a_usage_error(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, "--implementation", "kernels.py:rihgt")
    assert done.returncode == 4  # pytest's own for wrong usage
    assert "unknown function 'rihgt'" in done.stdout + done.stderr
    assert "session_of" not in done.stdout + done.stderr


def test_a_replayed_timer_shows_exactly_the_samples() -> None:
    clock, shown = Replay(), []
    for seconds in (0.25, 0.5, 0.125):
        before = clock()
        clock.advance(seconds)
        shown.append(clock() - before)
    assert shown == [0.25, 0.5, 0.125]


def test_the_engine_of_the_benchmarks_imports_no_framework() -> None:
    code = f"import sys, {pytest_benchmark.__name__}; print({{'torch', 'jax', 'altair'}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
