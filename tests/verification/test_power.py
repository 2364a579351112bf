"""The suite tested on itself: planted bugs die by a law, correct code by other algorithms is never accused.

A seventh of the mutants are checked here, spread over the families; `qkverify power` measures all of them.
"""

from __future__ import annotations

from importlib import import_module

import pytest

from qkverify.contract import registry
from qkverify.contract.registry import Missing
from qkverify.errors import UsageError
from qkverify.results import Kill, Planted
from qkverify.verification.checking import check_cell, plan
from qkverify.verification.mutation_testing import (
    attack,
    idle_laws,
    left_out,
    measure,
    named,
    planted,
    summary,
)

SOME = ("B002", "B004", "B007", "B011", "B014", "B019", "B022", "B029-maximum", "B040-rescale", "B041", "B043", "B054",
          "B059-shared-heads-get-one", "B060", "B066-query", "B074", "B078", "B088", "B124", "B131-delta-is-missing",
          "L049", "L052", "tiles-are-skipped", "A039", "D052", "D054", "D055", "D056", "L056")  # fmt: skip


def mutant(word):
    """The first mutant whose name holds the word."""
    matching = [implementation for implementation in planted() if word in implementation.name]
    assert matching, (
        f"no mutant is called *{word}*; there are {[implementation.name for implementation in planted()]}"
    )
    return matching[0]


@pytest.mark.parametrize("word", SOME)
def test_a_planted_bug_is_killed_by_a_law(word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = attack(mutant(word), examples=100)
    assert record.kills, f"{record.name} survived the whole law book"
    assert record.examples >= record.kills[0].examples > 0


@pytest.mark.parametrize(
    ("word", "law"),
    [
        ("B078", "masked_keys_have_no_influence"),
        ("B007", "causal_alignment_when_lengths_differ"),
        ("B054", "gqa_equals_repeated_keys"),
        ("B124", "log_sum_exp_is_right"),
    ],
)
def test_the_law_that_a_bug_breaks_is_among_those_that_fail(word, law, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert law in {kill.law for kill in attack(mutant(word), examples=50, matrix=True).kills}


@pytest.mark.parametrize("word", ["B007", "B019", "B078", "B124", "B131-delta-is-missing"])
def test_a_counterexample_fits_on_paper(word, tmp_path, monkeypatch):
    """At most 2 heads, 3 queries and 3 keys, where so much suffices."""
    monkeypatch.chdir(tmp_path)
    record = attack(mutant(word), examples=100)
    assert record.sizes["H"] <= 2, record.message
    assert record.sizes["Q"] <= 3, record.message
    assert record.sizes["K"] <= 3, record.message


def test_a_seed_makes_an_attack_repeatable(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, again, other = (attack(mutant("B066-query"), examples=50, seed=seed) for seed in (7, 7, 8))
    assert (first.examples, first.message) == (again.examples, again.message)
    assert first.kills[0].examples != other.kills[0].examples


def test_every_process_gets_the_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    records = [next(iter(measure(["B066-query"], profile="default", jobs=1, seed=5))) for _ in range(2)]
    assert (
        records[0].examples
        == records[1].examples
        == attack(mutant("B066-query"), examples=100, seed=5).examples
    )


def test_one_whose_process_died_is_killed_by_that_and_the_others_go_on(monkeypatch):
    monkeypatch.setattr(
        "qkverify.verification.mutation_testing.processes.each", lambda work, tasks, jobs: [(0, None)]
    )
    (record,) = measure(["B066-query"], matrix=True)
    assert record.matrix, "one that is not part of the matrix would take the picture of it from the page"
    assert (record.kind, record.name, [kill.law for kill in record.kills]) == (
        "mutant",
        mutant("B066-query").name,
        ["a crash of its process"],
    )
    assert summary([record])[0] == "1 of 1 mutants killed"


def test_what_cannot_be_imported_is_left_out_with_its_reason(monkeypatch):
    """Without triton the bugs of its kernel are not planted; a module of our own that is not there is no reason."""

    def without(name):
        def absent(module):
            if module.endswith(".triton_tiles"):
                raise ModuleNotFoundError(name=name)
            return import_module(module)

        return absent

    monkeypatch.setattr("qkverify.verification.mutation_testing.importlib.import_module", without("triton"))
    left_out.cache_clear()
    assert left_out("mutants") == (Missing("mutants/triton_tiles", "triton is not installed"),)
    monkeypatch.setattr(
        "qkverify.verification.mutation_testing.importlib.import_module", without("qkverify.gone")
    )
    left_out.cache_clear()
    with pytest.raises(ModuleNotFoundError):
        left_out("mutants")
    left_out.cache_clear()


@pytest.mark.parametrize("control", planted("controls"), ids=lambda control: control.name)
def test_correct_code_is_never_accused(control, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples = max(
        3, round(8 * control.effort.get("cpu", 1))
    )  # in Triton's interpreter eight take two minutes
    record = attack(control, examples=examples, matrix=True)
    assert not record.kills, record.message


def test_planted_bugs_are_not_in_a_users_run():
    names = [implementation.name for implementation in registry.load_folder()]
    assert not [name for name in names if name.startswith(("mutant-", "control-"))]
    assert all(not str(cell).startswith(("mutant-", "control-")) for cell in plan().cells)


def test_the_kernel_without_a_bug_passes_what_kills_its_mutants(tmp_path, monkeypatch):
    """The mutants' own base, unbroken: every law, every option."""
    monkeypatch.chdir(tmp_path)
    cell = plan(["numpy_textbook"], dtypes=("float32",)).cells[0]
    assert not [v.law for v in check_cell(cell, examples=8) if v.outcome not in ("passed", "not offered")]


def result(name, *laws, kind="mutant", **more):
    kills = [Kill(law, "masking", 3, 0.1) for law in laws]
    return Planted(name=name, kind=kind, operation="attention", dtype="float32", sentence="", kills=kills, examples=10,
                   seconds=0.5, matrix=True, **more)  # fmt: skip


def test_the_summary_counts_what_was_found():
    small = result(
        "mutant-a", "causal_prefix", sizes={"B": 1, "H": 1, "G": 1, "Q": 2, "K": 2, "D": 1, "E": 1}
    )
    lines = summary([small, result("mutant-b"), result("control-c", kind="control")])
    assert lines[0] == "1 of 2 mutants killed"
    assert "10 examples and 0.5 s" in lines[1]
    assert lines[2].endswith("1 of 1")
    assert lines[3] == "1 control, 10 examples: none accused"
    assert "ACCUSED control-c" in summary([result("control-c", "causal_prefix", kind="control")])[-1]


def test_a_law_that_kills_nothing_is_named():
    idle = [law.name for law in idle_laws([result("mutant-a", "causal_prefix")])]
    assert "causal_prefix" not in idle
    assert "agrees_with_reference" in idle


def test_an_unknown_mutant_is_named_with_its_neighbours():
    with pytest.raises(UsageError, match="B04"):
        named(["B04x"])
