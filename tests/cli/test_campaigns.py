"""A whole run: what it records, and how it goes on where a killed one ended."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from qkverify.cli import full_run
from qkverify.cli.full_run import unfinished
from qkverify.errors import UsageError
from qkverify.results import (
    Complexity,
    Counterexample,
    ImplementationInfo,
    Picture,
    Rounding,
    RunStart,
    Verdict,
    Writer,
    of_kind,
    read,
)
from qkverify.verification.checking import check_cell, compiled, examples_of, laws_named, plan
from qkverify.verification.isolation import checkers


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Two cells of functions that is checked in a moment; nothing is timed."""
    planned = plan(["numpy_slopes", "numpy_encoding"], dtypes=["float64"])
    checked = []

    def check_here(laws, *, profile, jobs, until, calls):
        checked.extend(laws)
        for cell, cell_laws in laws.items():  # here, not in other processes
            yield cell, list(check_cell(cell, cell_laws, examples=examples_of(profile)))

    monkeypatch.setattr(
        full_run,
        "plan",
        lambda targets, devices, dtypes: (
            planned if "cuda" not in devices else plan(targets or ["numpy_slopes"], devices, dtypes)
        ),
    )
    monkeypatch.setattr(full_run, "check_parts", check_here)
    monkeypatch.setattr(full_run, "run_grid", lambda *given, **settings: [])
    return tmp_path / "results.jsonl", checked


def run(path, **settings):
    full_run.record_everything(path, profile="glance", budget_seconds=0, **settings)


def test_a_run_records_its_header_every_law_and_every_implementation(small):
    path, checked = small
    run(path)
    records = read(path)
    assert isinstance(records[0], RunStart)
    assert {info.name for info in of_kind(records, ImplementationInfo)} == {"numpy_slopes", "numpy_encoding"}
    assert {v.implementation for v in of_kind(records, Verdict) if v.device == "cpu"} == {
        "numpy_slopes",
        "numpy_encoding",
    }
    assert len(checked) == 2
    assert {
        (rounding.unit, rounding.device, rounding.accumulator_bits) for rounding in of_kind(records, Rounding)
    } >= {
        ("numpy float64", "cpu", 52),
        ("numpy float32", "cpu", 23),
    }


WITHOUT_SCALE = """
import numpy as np
def attention(q, k, v, *, scale=None):
    s = q @ k.swapaxes(-1, -2)
    w = np.exp(s - s.max(-1, keepdims=True))
    return (w / w.sum(-1, keepdims=True)) @ v
"""


def test_failures_of_all_parts_are_recorded_with_one_explanation(monkeypatch, tmp_path):
    (tmp_path / "mine.py").write_text(WITHOUT_SCALE)
    monkeypatch.chdir(tmp_path)
    cells = plan(["mine.py:attention"], ["cpu"], ["float32"]).cells
    names = ("agrees_with_reference", "scale_covariance", "zero_scale_averages", "deterministic")
    laws = {cell: laws_named(names) for cell in cells}
    monkeypatch.setattr(checkers, "PARTS", len(names))  # a law in each
    with Writer(tmp_path / "results.jsonl") as writer:
        verdicts = full_run.verify(writer, laws, "glance")
    recorded = of_kind(read(tmp_path / "results.jsonl"), Verdict)
    assert [v.law for v in recorded] == [v.law for v in verdicts]
    assert {v.law for v in recorded} == {law.name for law in laws[cells[0]]}
    failed = [v for v in recorded if v.outcome == "failed"]
    assert len(failed) > 1
    assert {v.counterexample.diagnosis for v in failed} == {"The result equals attention without a scale."}


def test_a_killed_run_is_gone_on_with(small):
    path, checked = small
    run(path)
    lines = path.read_bytes().splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if b"numpy_encoding" in line)
    path.write_bytes(
        b"".join(lines[: first + 1]) + lines[first + 1][:20]
    )  # killed while it wrote the second law of it
    checked.clear()
    run(path, resume=True)
    assert [str(cell) for cell in checked] == ["numpy_encoding-cpu-float64"]
    laws = {
        v.law
        for v in of_kind(read(path), Verdict)
        if v.implementation == "numpy_encoding" and v.device == "cpu"
    }
    assert "agrees_with_formula" in laws


def test_without_resume_a_run_begins_anew(small):
    path, checked = small
    run(path)
    run(path)
    assert len(of_kind(read(path), RunStart)) == 1
    assert len(checked) == 4


def test_a_device_that_is_not_here_is_named(small):
    with pytest.raises(UsageError, match="cuda"):
        run(small[0], devices=["cuda"])


def test_the_pictures_are_recorded(small):
    path, _ = small
    run(path)
    names = {picture.name for picture in of_kind(read(path), Picture)}
    assert {"positions-picture-interleaved", "jacobian", "scaling-entropy", "attention"} <= names


def test_of_a_cell_that_was_not_finished_only_the_laws_without_a_verdict_are_checked(small):
    path, _ = small
    run(path)
    cell = plan(["numpy_encoding"], dtypes=["float64"]).cells[0]
    verdicts = [v for v in of_kind(read(path), Verdict) if v.implementation == "numpy_encoding"]
    laws = [v.law for v in verdicts if v.device == "cpu"]
    left = unfinished([cell], [v for v in verdicts if v.law not in laws[3:5]])
    assert [law.name for law in left[cell]] == laws[3:5]
    assert unfinished([cell], verdicts) == {}


def test_only_a_run_that_was_killed_is_gone_on_with_and_only_by_the_same_software(small, monkeypatch):
    path, checked = small
    run(path)
    checked.clear()
    run(path, resume=True)  # that run was finished
    assert len(checked) == 2
    killed = [record for record in read(path) if not isinstance(record, Complexity)]
    assert full_run.why_not_gone_on_with(killed, "glance") == ""
    assert full_run.why_not_gone_on_with(killed, "quick") == "was checked at profile glance"
    here = full_run.fingerprint()
    other = msgspec.structs.replace(here, identity={**here.identity, "torch": "1.0", "driver": "1.0"})
    monkeypatch.setattr(full_run, "fingerprint", lambda: other)
    said = full_run.why_not_gone_on_with(killed, "glance")
    assert said == f"was made with torch {here.identity['torch']}, here 1.0"


RAISES = """
import os
import numpy as np
from qkverify import implementation

declared = {"dtypes": ("float32",), "empty_rows": "zero", "masked_values": "read"}

@implementation(name="raises", **declared)
def raises(query, key, value):
    if query.shape[2] < 16:
        return np.zeros((*query.shape[:3], value.shape[3]), query.dtype)
    raise RuntimeError("no kernel image is available\\n  for this device")

@implementation(name="ends", **declared)
def ends(query, key, value):
    if query.shape[2] < 16:
        return np.zeros((*query.shape[:3], value.shape[3]), query.dtype)
    os._exit(1)
"""


def test_accuracy_that_is_not_to_be_had_is_said_and_the_run_goes_on(tmp_path, capsys):
    target = tmp_path / "kernels.py"
    target.write_text(RAISES)
    cells = plan([str(target)]).cells + plan(["numpy_textbook"], dtypes=["float32", "float64"]).cells
    accuracies = list(full_run.accuracies(cells))
    assert [(accuracy.implementation, accuracy.dtype) for accuracy in accuracies] == [
        ("numpy_textbook", "float32")
    ]
    said = sorted(capsys.readouterr().out.splitlines())
    assert said == [
        "the accuracy of ends-cpu-float32 was not measured: its process died",
        "the accuracy of raises-cpu-float32 was not measured: raised RuntimeError: no kernel image is available",
    ]


def test_what_a_compiler_makes_anew_for_every_size_is_begun_first():
    (triton,) = plan(["triton_flash"], dtypes=["float16"]).cells
    (plain,) = plan(["numpy_slopes"], dtypes=["float64"]).cells
    (flex,) = plan(["torch_flex-eager"], dtypes=["float16"]).cells
    on_gpu = dataclasses.replace(triton, device="cuda")
    anew = dataclasses.replace(flex, implementation=dataclasses.replace(flex.implementation, compiles=True))
    assert [compiled(cell) for cell in (plain, triton, flex, on_gpu, anew)] == [False] * 3 + [True] * 2


def test_a_recorded_script_names_its_file_from_where_the_run_was_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = f'FILE = "{tmp_path}/implementations/mine.py"\nOTHER = "/usr/lib/yours.py"\n'
    counterexample = Counterexample("it is wrong", "1 key", "1", "0", "0", None, "output[0]", "abc", script)
    verdict = Verdict(
        "law", "family", "It holds.", True, "i", "cpu", "float32", "failed", counterexample=counterexample
    )
    kept = full_run.elsewhere(verdict).counterexample
    assert kept.script == 'FILE = "implementations/mine.py"\nOTHER = "/usr/lib/yours.py"\n'
    assert kept.message == counterexample.message
    plain = msgspec.structs.replace(verdict, counterexample=None)
    assert full_run.elsewhere(plain) is plain
