"""A function that one file writes and another declares: `implementation(...)(imported_function)`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from qkverify.contract import REGISTERED, Implementation, registry
from qkverify.counterexamples import store
from qkverify.problem.attention_problem import Problem
from qkverify.runs.run import Run
from qkverify.timing import timing_worker
from qkverify.timing.benchmark_cases import BenchmarkCase
from qkverify.timing.workloads import resolve
from qkverify.verification import replay_command
from qkverify.verification.checking import laws_named
from qkverify.verification.replay_command import replay_counterexample

WRITTEN = """
import numpy as np

def attention(query, key, value):
    scores = np.einsum("blhd,bmhd->bhlm", query, key) * query.dtype.type(query.shape[-1] ** -0.5)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhlm,bmhe->blhe", weights / weights.sum(-1, keepdims=True), value)
"""
DECLARED = """
from qkverify import implementation
from written_elsewhere import attention

implementation(layout="BLHD", requires=("G == H", "K >= 1"), tile=24)(attention)
"""


@pytest.fixture
def declared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Implementation]:
    """What the declaring file says, after which this process knows of it no more than another one does."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "written_elsewhere.py").write_text(WRITTEN)
    (tmp_path / "targets.py").write_text(DECLARED)
    before, modules = list(REGISTERED), set(sys.modules)

    def forgotten() -> None:
        REGISTERED[:] = before
        for name in set(sys.modules) - modules:
            if name.startswith(("written_elsewhere", "targets_")):
                del sys.modules[name]

    (implementation,) = registry.find("targets.py")
    forgotten()
    yield implementation
    forgotten()


def test_the_declaring_file_is_a_target_and_is_where_another_process_finds_it(
    declared: Implementation, tmp_path: Path
) -> None:
    assert (declared.name, declared.layout) == ("written_elsewhere:attention", "BLHD")
    assert (declared.file, declared.home) == (
        str(tmp_path / "written_elsewhere.py"),
        str(tmp_path / "targets.py"),
    )
    again = registry.reload_implementation(declared.name, declared.home, "attention")
    assert (again.layout, again.tile, again.declared) == ("BLHD", (24,), True)


def test_the_function_of_the_declaring_file_is_declared(declared: Implementation) -> None:
    assert registry.find("targets.py:attention")[0].tile == (24,)


def test_a_timing_process_has_the_declaration(declared: Implementation) -> None:
    timing_worker._loaded.cache_clear()
    assert timing_worker._loaded(declared.name, declared.home, "attention").tile == (24,)


def test_what_was_said_on_the_command_line_holds_in_a_replay_and_in_a_timing_process(
    declared: Implementation,
) -> None:
    (adapted,) = registry.find("written_elsewhere.py:attention --layout BLHD --requires 'G == H'")
    (law,) = laws_named(["agrees_with_reference"])
    ones = np.ones((1, 1, 1, 1))
    run = Run(adapted, dtype="float64")
    run.failing = {"problem": Problem(query=ones, key=ones, value=ones)}
    name = store.store(law, run, scripted=False)
    assert replay_command._recorded(name, store.load(name)).adapters == adapted.adapters
    workload = resolve(["bert-base"])[0]
    named = timing_worker._named(
        BenchmarkCase(workload, adapted, "cpu", "float32", "forward"), None, None, None
    )
    timing_worker._loaded.cache_clear()
    assert timing_worker._found(named).implementation.requires[0] == "G == H"


def test_a_replay_has_the_declaration(declared: Implementation) -> None:
    """In (B,H,L,D) the function attends to heads: the law that holds of it would be broken."""
    (law,) = laws_named(["agrees_with_reference"])
    run = Run(declared, dtype="float64")
    arrays = np.random.default_rng(0).standard_normal((3, 1, 2, 5, 4))
    run.failing = {"problem": Problem(query=arrays[0], key=arrays[1], value=arrays[2])}
    assert replay_counterexample(store.store(law, run, scripted=False)) == ""
