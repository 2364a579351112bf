"""The fingerprint tells what it can, says None for what it cannot, and never imports a framework."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qkverify.results import RunStart, Writer, fingerprint, read


def test_a_fingerprint_survives_the_results_file(tmp_path: Path) -> None:
    here = fingerprint.fingerprint()
    start = RunStart(qkverify="0", started="", command="", profile="", fingerprint=here)
    with Writer(tmp_path / "results.jsonl") as writer:
        writer.append(start)
    assert read(tmp_path / "results.jsonl") == [start]


def test_identity_names_processor_libraries_and_versions() -> None:
    identity = fingerprint.identity()
    assert identity["cpu"]
    assert identity["cores"] == fingerprint.cores() >= 1
    assert identity["python"] == ".".join(map(str, sys.version_info[:3]))
    assert str(identity["numpy"])[0].isdigit()
    assert {"gpu", "driver", "cuda", "torch", "blas", "blas_threads", "commit", "dirty"} <= identity.keys()


def test_identity_does_not_change_between_two_calls() -> None:
    assert fingerprint.identity() == fingerprint.identity()


def test_no_array_framework_is_imported() -> None:
    code = "import sys, qkverify.results.fingerprint as f; f.fingerprint(); print({'torch', 'jax'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("module", ["psutil", "threadpoolctl"])
def test_optional_packages_may_be_missing(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    here = fingerprint.fingerprint()
    assert here.identity["cpu"]
    if module == "psutil":
        assert here.state["cpu_mhz"] is None


def test_gpu_facts_come_from_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "name": "NVIDIA H200\nNVIDIA H200",
        "memory.total": "143771",
        "clocks.sm": "[N/A]",
        "driver_version": "570",
    }

    def output(*command: str) -> str | None:
        return answers.get(command[1].removeprefix("--query-gpu=")) if command[0] == "nvidia-smi" else None

    monkeypatch.setattr(fingerprint, "_output", output)
    identity, state = fingerprint.identity(), fingerprint.state()
    assert (identity["gpu"], identity["gpu_memory_mib"], identity["driver"]) == (
        "NVIDIA H200",
        143771.0,
        "570",
    )
    assert state["gpu_mhz"] is None
    assert fingerprint.device_slug("cuda") == "nvidia-h200"


def test_a_command_that_is_missing_fails_or_hangs_gives_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "COMMAND_SECONDS", 0.1)
    assert fingerprint._output("no-such-command-anywhere") is None
    assert fingerprint._output(sys.executable, "-c", "raise SystemExit(1)") is None
    assert fingerprint._output(sys.executable, "-c", "import time; time.sleep(5)") is None


@pytest.mark.parametrize(
    ("model", "cores", "expected"),
    [
        ("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", 2, "intel-xeon-platinum-8481c-2-cores"),
        ("Intel(R) Xeon(R) Processor @ 2.50GHz", 2, "intel-xeon-2.50ghz-2-cores"),
        ("AMD EPYC 7B13 64-Core Processor", 64, "amd-epyc-7b13-64-cores"),
        ("Apple M3 Pro", 1, "apple-m3-pro-1-core"),
        ("", 4, "4-cores"),
    ],
)
def test_a_device_has_a_readable_name(
    model: str, cores: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "cpu_model", lambda: model)
    monkeypatch.setattr(fingerprint, "cores", lambda: cores)
    assert fingerprint.device_slug("cpu") == expected


def test_a_checkout_says_commit_and_whether_files_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=n", "-c", "user.email=e@e"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    package = tmp_path / "src" / "qkverify" / "results"
    package.mkdir(parents=True)
    (package / "fingerprint.py").write_text("")
    monkeypatch.setattr(fingerprint, "__file__", str(package / "fingerprint.py"))
    assert fingerprint.checkout() == {"commit": None, "dirty": None}
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    clean = fingerprint.checkout()
    assert len(str(clean["commit"])) == 40
    assert clean["dirty"] == "no"
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "page.html").write_text("made by the run itself")
    assert fingerprint.checkout() == clean
    (package / "fingerprint.py").write_text("changed")
    assert fingerprint.checkout()["dirty"] == "yes"


def test_torch_facts_are_none_where_torch_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)

    def unreachable(torch: Any) -> str:
        raise AssertionError("torch was asked")

    assert fingerprint._torch(unreachable) is None
