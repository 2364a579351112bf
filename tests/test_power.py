"""The suite tested on itself: planted bugs die by a law, correct code by other algorithms is never accused.

Twenty of the mutants are checked here, spread over the families; `python -m qkverify.power` measures all of them.
"""

from __future__ import annotations

import pytest

from qkverify import registry
from qkverify.power import kills, planted
from qkverify.verification import check_cell, plan

TWENTY = ("B002", "B004", "B007", "B011", "B014", "B019", "B022", "B029-maximum", "B040-rescale", "B041", "B043", "B054",
          "B059-shared-heads-get-one", "B060", "B066-query", "B074", "B078", "B088", "B124", "B131-delta-is-missing")  # fmt: skip


def named(word):
    """The first mutant whose name holds the word."""
    found = [one for one in planted() if word in one.name]
    assert found, f"no mutant is called *{word}*; there are {[one.name for one in planted()]}"
    return found[0]


@pytest.mark.parametrize("word", TWENTY)
def test_a_planted_bug_is_killed_by_a_law(word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = next(kills(named(word), examples=100), None)
    assert found is not None, f"{named(word).name} survived the whole law book"
    assert found.examples


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
    assert law in {kill.law for kill in kills(named(word), examples=50, first=False)}


@pytest.mark.parametrize("word", ["B007", "B019", "B078", "B124", "B131-delta-is-missing"])
def test_a_counterexample_fits_on_paper(word, tmp_path, monkeypatch):
    """At most 2 heads, 3 queries and 3 keys, where so much suffices."""
    monkeypatch.chdir(tmp_path)
    found = next(kills(named(word), examples=100))
    sizes = found.sizes
    assert sizes["H"] <= 2, found.problem
    assert sizes["Q"] <= 3, found.problem
    assert sizes["K"] <= 3, found.problem


@pytest.mark.parametrize("one", planted("controls"), ids=lambda one: one.name)
def test_correct_code_is_never_accused(one, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    accused = [kill for kill in kills(one, examples=8, first=False)]
    assert not accused, "\n".join(f"{kill.law}: {kill.problem}" for kill in accused)


def test_planted_bugs_are_not_in_a_users_run():
    names = [one.name for one in registry.load_folder()]
    assert not [name for name in names if name.startswith(("mutant-", "control-"))]
    assert all(not str(cell).startswith(("mutant-", "control-")) for cell in plan().cells)


def test_the_kernel_without_a_bug_passes_what_kills_its_mutants(tmp_path, monkeypatch):
    """The mutants' own base, unbroken: every law, every option."""
    monkeypatch.chdir(tmp_path)
    cell = plan(["numpy_textbook"], dtypes=("float32",)).cells[0]
    assert not [v.law for v in check_cell(cell, examples=8) if v.outcome not in ("passed", "not offered")]
